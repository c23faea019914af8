# PMP, predicate-many-preceders: a range read twice gives the same twice.

setup a/v=1

alice begin
alice scan a..z -> a/v=1
bob   begin
bob   put m/v 2
bob   commit -> committed
alice scan a..z -> a/v=1
alice commit -> nothing to write

versions m/v: bob
