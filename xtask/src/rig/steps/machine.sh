grep -m1 'model name' /proc/cpuinfo
echo "$(nproc) CPUs, $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB"
grep -qw svm /proc/cpuinfo || fail "the CPU has no AMD-V"
[ -c /dev/kvm ] || fail "there is no /dev/kvm"
echo "kvm_amd: npt=$(cat /sys/module/kvm_amd/parameters/npt) nested=$(cat /sys/module/kvm_amd/parameters/nested)"
grep -qE '[1Y]' /sys/module/kvm_amd/parameters/nested || fail "kvm_amd allows no nested guest"
for program in ft-vmm ft-ctl ft-diskd ft-netd; do
    "$program" --version
done
ls -l /rig/image/images/*/
df -h /rig/work | tail -1
echo "up for $(cut -d ' ' -f 1 /proc/uptime) s"
