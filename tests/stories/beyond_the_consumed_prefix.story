# Whoever stopped reading at the second row has learned nothing of the third, forward and in reverse.

setup a/v=1 c/v=1 e/v=1 g/v=1

alice begin
alice scan a..h limit 2 -> a/v=1 c/v=1
carol begin
carol scan a..h limit 2 reverse -> g/v=1 e/v=1
bob   begin
bob   put d/v 1
bob   commit -> committed
alice put alice/v 1
carol put carol/v 1
alice commit -> committed
carol commit -> committed

dave  begin
dave  scan a..b limit 1 -> a/v=1
erin  begin
erin  put aa/v 1
erin  commit -> committed
dave  put dave/v 1
dave  commit -> committed

versions d/v: bob
versions alice/v: alice
versions carol/v: carol
versions dave/v: dave
