ft-ctl doctor || true
ft-ctl doctor --json >doctor.json || true
# The first level of the report is indented by two.
engine=$(sed -n 's/^  "engine": "\(.*\)",$/\1/p' doctor.json)
[ "$engine" = kvm ] || fail "auto picks '$engine' here, not kvm"
