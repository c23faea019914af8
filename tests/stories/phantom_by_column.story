# A column that appears in a range of columns somebody has read; one outside of the range is none of his business.

setup row/b=1 row/x=1

alice begin
alice columns row a..d -> b=1
carol begin
carol columns row a..d -> b=1
bob   begin
bob   put row/z 1
bob   commit -> committed
alice put alice/v 1
alice commit -> committed
dave  begin
dave  put row/c 1
dave  commit -> committed
carol columns row a..d -> b=1
carol put carol/v 1
snapshot:     carol commit -> committed
serializable: carol commit -> READ_CONFLICT

versions row/z: bob
versions row/c: dave
versions alice/v: alice
snapshot:     versions carol/v: carol
serializable: versions carol/v:
