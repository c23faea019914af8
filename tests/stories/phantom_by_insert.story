# A row that appears in a range somebody has read.

setup a/v=1 c/v=1

alice begin
alice scan a..d -> a/v=1 c/v=1
bob   begin
bob   put b/v 1
bob   commit -> committed
alice scan a..d -> a/v=1 c/v=1
alice put count/v 2
snapshot:     alice commit -> committed
serializable: alice commit -> READ_CONFLICT

versions b/v: bob
snapshot:     versions count/v: alice
serializable: versions count/v:
