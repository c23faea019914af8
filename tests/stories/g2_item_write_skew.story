# G2-item, write skew: each of two transactions keeps a rule over two cells, both together break it. Allowed under
# snapshot isolation, as everywhere; refused where reads are checked.

setup x/v=1 y/v=1

alice begin
bob   begin
alice get x/v -> 1
alice get y/v -> 1
bob   get x/v -> 1
bob   get y/v -> 1
alice put x/v 0
bob   put y/v 0
alice commit -> committed
snapshot:     bob commit -> committed
serializable: bob commit -> READ_CONFLICT

versions x/v: alice setup
snapshot:     versions y/v: bob setup
serializable: versions y/v: setup
