# G2, write skew over a predicate: each of two transactions adds what the range it has read must not hold twice.

setup k/v=0

alice begin
bob   begin
alice scan a..f -> nothing
bob   scan a..f -> nothing
alice put b/v alice
bob   put c/v bob
bob   commit -> committed
snapshot:     alice commit -> committed
serializable: alice commit -> READ_CONFLICT

versions c/v: bob
snapshot:     versions b/v: alice
serializable: versions b/v:
