# What appears between the rows that a reader was given was read as absent, though the reader stopped behind it.

setup a/v=1 c/v=1 e/v=1

alice begin
alice scan a..h limit 2 -> a/v=1 c/v=1
bob   begin
bob   put b/v 1
bob   commit -> committed
alice put own/v 1
snapshot:     alice commit -> committed
serializable: alice commit -> READ_CONFLICT

versions b/v: bob
snapshot:     versions own/v: alice
serializable: versions own/v:
