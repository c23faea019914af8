# G1a, aborted read: nobody sees what was never committed.

setup x/v=0

alice begin
bob   begin
alice put x/v 1
bob   get x/v -> 0
alice abort
carol begin
carol get x/v -> 0
bob   get x/v -> 0
bob   commit -> nothing to write

versions x/v: setup
