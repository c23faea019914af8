# G1b, intermediate read: of the writes of a transaction only the last is ever seen.

setup x/v=0

alice begin
alice put x/v draft
bob   begin
bob   get x/v -> 0
alice put x/v final
alice commit -> committed
bob   get x/v -> 0
carol begin
carol get x/v -> final

versions x/v: alice setup
