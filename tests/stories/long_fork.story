# Long fork: two readers can't see two commits in two orders. There is one order of commits, and each snapshot is a
# prefix of it, under snapshot isolation too.

setup x/v=0 y/v=0

alice begin
bob   begin
alice put x/v 1
bob   put y/v 1
alice commit -> committed
carol begin
carol get y/v -> 0
carol get x/v -> 1
bob   commit -> committed
dave  begin
dave  get x/v -> 1
dave  get y/v -> 1
carol get y/v -> 0

versions x/v: alice setup
versions y/v: bob setup
