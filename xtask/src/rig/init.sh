#!/bin/sh
# The rig's initramfs: loads the modules (KVM among them, with the npt= of the kernel's command line),
# mounts the root disk, the guest image and the work disk, and hands over to the agent on the latter.
b=/bin/busybox

$b mount -t devtmpfs -o mode=0755 dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys

npt=1
read -r line </proc/cmdline
for word in $line; do
    case $word in
    rig.npt=*) npt=${word#rig.npt=} ;;
    esac
done

for module in /m/*; do
    case $module in
    *kvm-amd.ko) $b insmod "$module" npt="$npt" nested=1 || echo "rig: KVM refuses to load" ;;
    *) $b insmod "$module" || echo "rig: cannot load $module" ;;
    esac
done

tries=0
while ! [ -b /dev/vdc ] && [ $tries -lt 100 ]; do
    $b sleep 0.1
    tries=$((tries + 1))
done
$b mount -t ext4 -o rw,noatime /dev/vda /root || echo "rig: cannot mount the root disk"
$b mkdir -p /root/rig/image /root/rig/work
$b mount -t ext4 -o ro /dev/vdb /root/rig/image || echo "rig: cannot mount the guest image"
$b mount -t ext4 -o rw,noatime /dev/vdc /root/rig/work || echo "rig: cannot mount the work disk"
$b mount -o move /dev /root/dev
$b mount -o move /proc /root/proc
$b mount -o move /sys /root/sys
$b mount -t tmpfs -o mode=0755 run /root/run
exec $b switch_root /root /bin/bash /rig/work/agent
