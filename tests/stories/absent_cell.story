# What was read as absent counts as read.

setup other/v=1

alice begin
alice get name/v -> nothing
bob   begin
bob   get name/v -> nothing
alice put name/v alice
alice commit -> committed
bob   put greeting/v hello
snapshot:     bob commit -> committed
serializable: bob commit -> READ_CONFLICT

versions name/v: alice
snapshot:     versions greeting/v: bob
serializable: versions greeting/v:
