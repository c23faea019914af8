//! Values that have the right type and still make no sense.

use super::{AtlasConfig, KvsConfig};
use std::time::Duration;

impl AtlasConfig {
    /// The first setting that can't be meant, as its path and what is wrong with it.
    pub(super) fn find_nonsense(&self) -> Option<(&'static str, String)> {
        let namespace_is_a_name = !self.namespace.is_empty()
            && self.namespace.len() <= 100
            && self.namespace.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        let transactions = &self.transactions;
        let checks = [
            ("namespace", namespace_is_a_name, "write 1 to 100 letters, digits, '_', '.' and '-'"),
            ("keyValueService.dataDir", self.key_value_service.names_a_place(), "name a directory"),
            ("keyValueService.host", self.key_value_service.names_a_host(), "name a server"),
            ("keyValueService.contactPoints", self.key_value_service.names_nodes(), "name a node, as 127.0.0.1:9042"),
            ("keyValueService.replicationFactor", self.key_value_service.is_kept_somewhere(), NOT_ZERO),
            ("keyValueService.commandTimeout", self.key_value_service.gives_commands_time(), NOT_ZERO),
            ("keyValueService.poolSize", self.key_value_service.has_connections(), "write 3 or more"),
            ("leader.lease", self.leader.lease >= LEASE_MIN, "write 1s or more"),
            ("transactions.valueSizeMax", !transactions.value_size_max.is_empty(), NOT_ZERO),
            ("transactions.writeSizeMax", !transactions.write_size_max.is_empty(), NOT_ZERO),
            ("transactions.groupSizeMax", !transactions.group_size_max.is_empty(), NOT_ZERO),
            ("transactions.timeout", transactions.timeout > Duration::ZERO, NOT_ZERO),
            ("transactions.lockTimeout", transactions.lock_timeout > Duration::ZERO, NOT_ZERO),
            ("transactions.attemptsMax", transactions.attempts_max > 0, NOT_ZERO),
            ("server.http", is_address(&self.server.http), ADDRESS),
            ("server.grpc", is_address(&self.server.grpc), ADDRESS),
            ("backup.repository", !self.backup.repository.as_os_str().is_empty(), "name a directory"),
            ("backup.settleTimeout", self.backup.settle_timeout > Duration::ZERO, NOT_ZERO),
            ("backup.lockHeldLong", self.backup.lock_held_long > Duration::ZERO, NOT_ZERO),
            ("sweep.interval", self.sweep.interval > Duration::ZERO, NOT_ZERO),
            ("sweep.batchCells", self.sweep.batch_cells > 0, NOT_ZERO),
            ("sweep.backOffMax", self.sweep.back_off_max > Duration::ZERO, NOT_ZERO),
            ("backup.lockLease", self.backup.lock_lease >= Duration::from_secs(1), "write 1s or more"),
        ];
        checks.into_iter().find(|(_, fine, _)| !fine).map(|(path, _, reason)| (path, reason.to_owned()))
    }
}

/// A lease that is over sooner would be lost to every pause of the network.
const LEASE_MIN: Duration = Duration::from_secs(1);
const NOT_ZERO: &str = "it must be more than zero";
const ADDRESS: &str = "write HOST:PORT, or 'off'";

impl KvsConfig {
    fn names_a_place(&self) -> bool {
        match self {
            KvsConfig::Rocksdb { data_dir, .. } => !data_dir.as_os_str().is_empty(),
            KvsConfig::Postgres(_) | KvsConfig::Cassandra(_) | KvsConfig::Memory {} => true,
        }
    }

    fn names_a_host(&self) -> bool {
        !matches!(self, KvsConfig::Postgres(postgres) if postgres.host.is_empty())
    }

    fn names_nodes(&self) -> bool {
        let KvsConfig::Cassandra(cassandra) = self else { return true };
        cassandra.contact_points().next().is_some()
    }

    fn is_kept_somewhere(&self) -> bool {
        !matches!(self, KvsConfig::Cassandra(cassandra) if cassandra.replication_factor == 0)
    }

    fn gives_commands_time(&self) -> bool {
        !matches!(self, KvsConfig::Cassandra(cassandra) if cassandra.command_timeout.is_zero())
    }

    fn has_connections(&self) -> bool {
        !matches!(self, KvsConfig::Postgres(postgres) if postgres.pool_size < 3)
    }
}

fn is_address(text: &str) -> bool {
    text == "off"
        || text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok()
        })
}
