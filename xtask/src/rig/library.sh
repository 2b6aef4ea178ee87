# What every step's script begins with.
set -eu -o pipefail

# What this machine is made by.
emulator=qemu
grep -qw vmx /proc/cpuinfo && emulator=bochs

fail() {
    echo "$*" >&2
    exit 1
}

# The machines of the rig: on KVM, with bounds for a host on which a guest's exit takes 100 us and
# both replicas share one emulated core. At full speed the guest's 250 ticks a second, of ten exits and
# more each, would take all of it.
cat >/rig/work/kvm.toml <<'END'
[vm]
engine = "kvm"
memory = "256MiB"
stretch_ms = 50
clock_percent = 25

[detect]
heartbeat_ms = 500
suspect_ms = 20000

[lag]
target_ms = 1000
limit_ms = 10000
END

# An end-to-end test on such machines; the booted guest's state is made by the first and kept.
on_kvm() {
    e2e "$1" --repeat 1 --base /rig/work/base --config /rig/work/kvm.toml --patience 5
}
