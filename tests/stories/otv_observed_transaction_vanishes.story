# OTV, observed transaction vanishes: whoever sees one write of a transaction sees all of them, and goes on doing so.

setup x/v=0 y/v=0

alice begin
bob   begin
alice put x/v alice
alice put y/v alice
alice commit -> committed
carol begin
carol get x/v -> alice
bob   put x/v bob
bob   put y/v bob
bob   commit -> CONFLICT
dave  begin
dave  put x/v dave
dave  put y/v dave
dave  commit -> committed
carol get y/v -> alice
carol get x/v -> alice

versions x/v: dave alice setup
versions y/v: dave alice setup
