# The read-only anomaly of Fekete, O'Neil and O'Neil: a report sees the deposit and not the withdrawal with its fee,
# although the fee was due only without the deposit. Without the report the two could have been one after the other.

setup checking/v=0 savings/v=0

withdrawal begin
withdrawal get checking/v -> 0
withdrawal get savings/v -> 0
deposit    begin
deposit    get savings/v -> 0
deposit    put savings/v 20
deposit    commit -> committed
report     begin
report     get checking/v -> 0
report     get savings/v -> 20
report     commit -> nothing to write
withdrawal put checking/v -11
snapshot:     withdrawal commit -> committed
serializable: withdrawal commit -> READ_CONFLICT

versions savings/v: deposit setup
snapshot:     versions checking/v: withdrawal setup
serializable: versions checking/v: setup
