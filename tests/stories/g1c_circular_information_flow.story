# G1c, circular information flow: two transactions can't each see what the other one wrote. That both commit, although
# each read what the other one replaced, is write skew: refused where reads are checked.

setup x/v=0 y/v=0

alice begin
bob   begin
alice put x/v alice
bob   put y/v bob
alice get y/v -> 0
bob   get x/v -> 0
alice commit -> committed
snapshot:     bob commit -> committed
serializable: bob commit -> READ_CONFLICT

versions x/v: alice setup
snapshot:     versions y/v: bob setup
serializable: versions y/v: setup
