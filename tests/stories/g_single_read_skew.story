# G-single, read skew: one transaction never sees one cell before and another one after the same commit. A reader that
# goes on to write what it made of its snapshot is refused where reads are checked.

setup x/v=1 y/v=1

alice begin
alice get x/v -> 1
bob   begin
bob   put x/v 2
bob   put y/v 2
bob   commit -> committed
alice get y/v -> 1
alice put sum/v 2
snapshot:     alice commit -> committed
serializable: alice commit -> READ_CONFLICT

snapshot:     versions sum/v: alice
serializable: versions sum/v:
versions x/v: bob setup
