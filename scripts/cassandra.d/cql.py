#!/usr/bin/env python3
"""Speaks enough of Cassandra's native protocol, version 4, to see whether a node is ready and to try statements by hand.

    cql.py [OPTIONS] STATEMENT…       runs them in order; a row a line, columns separated by tabs, names first
    cql.py [OPTIONS] --ready NODES LIVE
                                      exit 0 if the node answers, knows NODES - 1 others and sees LIVE nodes alive

Only the standard library is used. There is no authentication, encryption or compression: it talks to throw-away servers
on loopback. Exit codes: 0 done, 1 the server refused or did not answer, 2 wrong arguments.
"""

import argparse
import datetime
import ipaddress
import socket
import struct
import sys
import time
import uuid

ERROR, STARTUP, READY, AUTHENTICATE, QUERY, RESULT, AUTH_RESPONSE, AUTH_SUCCESS = 0x00, 0x01, 0x02, 0x03, 0x07, 0x08, 0x0F, 0x10
ROWS, SCHEMA_CHANGE = 2, 5
CONSISTENCIES = {
    name: code
    for code, name in enumerate(
        "ANY ONE TWO THREE QUORUM ALL LOCAL_QUORUM EACH_QUORUM SERIAL LOCAL_SERIAL LOCAL_ONE".split()
    )
}
# A read of a table that each of up to three nodes has a replica of: at consistency k it is refused at once unless the
# node believes that k of them are alive, which is what "the nodes see each other" means.
REPLICATED_READ = "SELECT status FROM system_distributed.view_build_status WHERE keyspace_name = 'a' AND view_name = 'a'"


class ServerError(Exception):
    """What the server answered instead of a result."""


class Reader:
    """Takes the protocol's values off the front of a message."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        piece = self.data[self.at : self.at + count]
        if len(piece) != count:
            raise ServerError("a message of the server ends too early")
        self.at += count
        return piece

    def number(self, form):
        return struct.unpack(">" + form, self.take(struct.calcsize(form)))[0]

    def string(self):
        return self.take(self.number("H")).decode()

    def bytes(self):
        length = self.number("i")
        return None if length < 0 else self.take(length)

    def type(self):
        code = self.number("H")
        if code == 0x00:
            return (code, self.string())
        if code in (0x20, 0x22):
            return (code, self.type())
        if code == 0x21:
            return (code, (self.type(), self.type()))
        if code == 0x30:
            self.string(), self.string()
            return (code, [(self.string(), self.type())[1] for _ in range(self.number("H"))])
        if code == 0x31:
            return (code, [self.type() for _ in range(self.number("H"))])
        return (code, None)


def text(kind, value):
    """A value as a person would write it."""
    if value is None:
        return "null"
    code, inner = kind
    signed = lambda data: int.from_bytes(data, "big", signed=True)
    if code in (0x01, 0x0D):
        return value.decode()
    if code in (0x02, 0x05, 0x09, 0x0E, 0x12, 0x13, 0x14):
        return str(signed(value))
    if code == 0x04:
        return str(value != b"\0")
    if code == 0x06:
        return f"{signed(value[4:])}E{-signed(value[:4])}"
    if code == 0x07:
        return repr(struct.unpack(">d", value)[0])
    if code == 0x08:
        return repr(struct.unpack(">f", value)[0])
    if code == 0x0B:
        epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
        return (epoch + datetime.timedelta(milliseconds=signed(value))).isoformat(timespec="milliseconds")
    if code in (0x0C, 0x0F):
        return str(uuid.UUID(bytes=value))
    if code == 0x10:
        return str(ipaddress.ip_address(value))
    if code in (0x20, 0x22):
        reader = Reader(value)
        return "[" + ", ".join(text(inner, reader.bytes()) for _ in range(reader.number("i"))) + "]"
    if code == 0x21:
        reader = Reader(value)
        pairs = [(reader.bytes(), reader.bytes()) for _ in range(reader.number("i"))]
        return "{" + ", ".join(f"{text(inner[0], k)}: {text(inner[1], v)}" for k, v in pairs) + "}"
    if code in (0x30, 0x31):
        reader = Reader(value)
        return "(" + ", ".join(text(part, reader.bytes()) for part in inner if reader.at < len(value)) + ")"
    return "0x" + value.hex()


class Result:
    def __init__(self, reader):
        self.columns, self.types, self.rows, self.paging_state = [], [], [], None
        kind = reader.number("i")
        self.changes_schema = kind == SCHEMA_CHANGE
        self.has_rows = kind == ROWS
        if not self.has_rows:
            return
        flags, count = reader.number("i"), reader.number("i")
        if flags & 2:
            self.paging_state = reader.bytes()
        if flags & 1:
            reader.string(), reader.string()
        for _ in range(count):
            if not flags & 1:
                reader.string(), reader.string()
            self.columns.append(reader.string())
            self.types.append(reader.type())
        for _ in range(reader.number("i")):
            self.rows.append([text(kind, reader.bytes()) for kind in self.types])


class Connection:
    def __init__(self, host, port, timeout):
        self.socket = socket.create_connection((host, port), timeout)
        options = {"CQL_VERSION": "3.0.0"}
        body = struct.pack(">H", len(options))
        for pair in options.items():
            for word in pair:
                body += struct.pack(">H", len(word)) + word.encode()
        opcode, _ = self.ask(STARTUP, body)
        if opcode == AUTHENTICATE:
            # As every new cluster knows one.
            word = b"\0cassandra\0cassandra"
            opcode, _ = self.ask(AUTH_RESPONSE, struct.pack(">i", len(word)) + word)
        if opcode not in (READY, AUTH_SUCCESS):
            raise ServerError(f"the server answers with message 0x{opcode:02x} to a connection")

    def ask(self, opcode, body):
        self.socket.sendall(struct.pack(">BBhBi", 0x04, 0, 0, opcode, len(body)) + body)
        version, flags, _, opcode, length = struct.unpack(">BBhBi", self.receive(9))
        if version != 0x84:
            raise ServerError(f"the server speaks version {version & 0x7F} of the protocol, not 4")
        reader = Reader(self.receive(length))
        if flags & 0x08:  # Warnings come before the body proper.
            for _ in range(reader.number("H")):
                print("warning: " + reader.string(), file=sys.stderr)
        if opcode == ERROR:
            code = reader.number("i")
            raise ServerError(f"error 0x{code:04x}: {reader.string()}")
        return opcode, reader

    def receive(self, count):
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise ServerError("the server closed the connection")
            data += piece
        return data

    def page(self, statement, consistency, serial, paging_state=None):
        words = statement.encode()
        # Flags: a page size, perhaps where to go on, a serial consistency.
        flags = 0x04 | (0x08 if paging_state else 0) | 0x10
        body = struct.pack(">i", len(words)) + words
        body += struct.pack(">HBi", CONSISTENCIES[consistency], flags, 1000)
        if paging_state:
            body += struct.pack(">i", len(paging_state)) + paging_state
        body += struct.pack(">H", CONSISTENCIES[serial])
        return Result(self.ask(QUERY, body)[1])

    def query(self, statement, consistency="ONE", serial="SERIAL"):
        result = page = self.page(statement, consistency, serial)
        while page.paging_state:
            page = self.page(statement, consistency, serial, page.paging_state)
            result.rows += page.rows
        return result

    def await_schema_agreement(self):
        deadline = time.monotonic() + 10
        while True:
            versions = {row[0] for row in self.query("SELECT schema_version FROM system.local").rows}
            versions |= {row[0] for row in self.query("SELECT schema_version FROM system.peers").rows}
            if len(versions) == 1:
                return
            if time.monotonic() > deadline:
                print("warning: the nodes don't agree on the schema after 10 s; is one down?", file=sys.stderr)
                return
            time.sleep(0.1)


def is_ready(connection, nodes, live):
    connection.query("SELECT release_version FROM system.local")
    peers = int(connection.query("SELECT count(*) FROM system.peers").rows[0][0])
    if peers != nodes - 1:
        raise ServerError(f"it knows {peers} other nodes, not {nodes - 1}")
    connection.query(REPLICATED_READ, {1: "ONE", 2: "TWO", 3: "THREE"}[live])


def run(connection, statement, options):
    """Runs one statement, --times times, and prints what it gave the last time, or how long it took."""
    seconds = []
    for count in range(options.times):
        begin = time.monotonic()
        result = connection.query(statement.replace("{n}", str(count)), options.consistency, options.serial)
        seconds.append(time.monotonic() - begin)
    if options.times > 1:
        seconds.sort()
        at = lambda share: 1000 * seconds[min(len(seconds) - 1, int(share * len(seconds)))]
        print(f"{options.times} times: median {at(0.5):.1f} ms, 95 % {at(0.95):.1f} ms, worst {at(1):.1f} ms")
    elif result.has_rows:
        for row in [result.columns] + result.rows:
            print("\t".join(row))
    if result.changes_schema:
        connection.await_schema_agreement()


def main():
    parser = argparse.ArgumentParser(description="Runs CQL statements on one node.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9042)
    parser.add_argument("--timeout", type=float, default=30, help="seconds to wait for an answer (30)")
    parser.add_argument("--consistency", type=str.upper, choices=CONSISTENCIES, default="QUORUM")
    parser.add_argument("--serial", type=str.upper, choices=("SERIAL", "LOCAL_SERIAL"), default="SERIAL")
    parser.add_argument("--times", type=int, default=1, help="run it so often, {n} in it counting, and print how long it took")
    parser.add_argument("--ready", type=int, nargs=2, metavar=("NODES", "LIVE"))
    parser.add_argument("statement", nargs="*")
    options = parser.parse_args()
    if bool(options.statement) == bool(options.ready):
        parser.error("either statements or --ready")
    try:
        connection = Connection(options.host, options.port, options.timeout)
        if options.ready:
            is_ready(connection, *options.ready)
        for statement in options.statement:
            run(connection, statement, options)
    except (OSError, ServerError) as error:
        print(f"{options.host}:{options.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
