# A value that was changed and changed back was changed: what lay between may have been seen.

setup x/v=A

alice begin
alice get x/v -> A
bob   begin
bob   put x/v B
bob   commit -> committed
carol begin
carol get x/v -> B
carol put x/v A
carol commit -> committed
alice put y/v 1
snapshot:     alice commit -> committed
serializable: alice commit -> READ_CONFLICT

versions x/v: carol bob setup
snapshot:     versions y/v: alice
serializable: versions y/v:
