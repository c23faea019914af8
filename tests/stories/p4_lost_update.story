# P4, lost update: of two who raise the same number the second is refused, and nobody's update is lost.

setup x/v=10

alice begin
bob   begin
alice get x/v -> 10
bob   get x/v -> 10
alice put x/v 11
bob   put x/v 12
bob   commit -> committed
alice commit -> CONFLICT

versions x/v: bob setup
