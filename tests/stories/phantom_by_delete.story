# A row that vanishes from a range somebody has read.

setup a/v=1 b/v=1 c/v=1

alice begin
alice scan a..d -> a/v=1 b/v=1 c/v=1
bob   begin
bob   delete b/v
bob   commit -> committed
alice scan a..d -> a/v=1 b/v=1 c/v=1
alice put count/v 3
snapshot:     alice commit -> committed
serializable: alice commit -> READ_CONFLICT

versions b/v: bob setup
snapshot:     versions count/v: alice
serializable: versions count/v:
