# G0, dirty write: the writes of two transactions never mix. The second to commit is refused whole.

setup x/v=0 y/v=0

alice begin
bob   begin
alice put x/v alice
bob   put x/v bob
bob   put y/v bob
alice put y/v alice
alice commit -> committed
bob   commit -> CONFLICT

versions x/v: alice setup
versions y/v: alice setup
