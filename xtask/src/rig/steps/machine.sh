grep -m1 'model name' /proc/cpuinfo
echo "$(nproc) CPUs, $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB"
case $(grep -m1 -owE 'svm|vmx' /proc/cpuinfo || true) in
svm) module=kvm_amd paging=npt ;;
vmx) module=kvm_intel paging=ept ;;
*) fail "the CPU has neither AMD-V nor VT-x" ;;
esac
[ -c /dev/kvm ] || fail "there is no /dev/kvm"
parameters=/sys/module/$module/parameters
echo "$module: $paging=$(cat $parameters/$paging) nested=$(cat $parameters/nested)"
grep -qE '[1Y]' $parameters/nested || fail "$module allows no nested guest"
for program in ft-vmm ft-ctl ft-diskd ft-netd; do
    "$program" --version
done
ls -l /rig/image/images/*/
df -h /rig/work | tail -1
echo "up for $(cut -d ' ' -f 1 /proc/uptime) s"
