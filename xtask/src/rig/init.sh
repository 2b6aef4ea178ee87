#!/bin/sh
# The rig's initramfs: loads the modules (KVM among them, with the npt= of the kernel's command line on
# AMD), mounts the root disk, the guest image and the work disk, and hands over to the agent on the
# latter. Virtio disks come in the order in which QEMU got them; IDE disks are told by their models.
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
    *kvm-amd.ko) options="npt=$npt nested=1" ;;
    *kvm-intel.ko) options="ept=1 nested=1" ;;
    *) options= ;;
    esac
    $b insmod "$module" $options || echo "rig: cannot load $module"
done

# disk VIRTIO MODEL: prints the device, if it is there.
disk() {
    [ -b "/dev/$1" ] && echo "/dev/$1"
    for model in /sys/block/sd*/device/model; do
        # Padded with blanks, which `read` takes away.
        [ -r "$model" ] && read -r name <"$model" && [ "$name" = "$2" ] || continue
        name=${model#/sys/block/}
        echo "/dev/${name%%/*}"
    done
}

tries=0
while [ $tries -lt 100 ]; do
    root=$(disk vda rig-root)
    image=$(disk vdb rig-image)
    work=$(disk vdc rig-work)
    [ -n "$root" ] && [ -n "$image" ] && [ -n "$work" ] && break
    $b sleep 0.1
    tries=$((tries + 1))
done
$b mount -t ext4 -o rw,noatime "$root" /root || echo "rig: cannot mount the root disk"
$b mkdir -p /root/rig/image /root/rig/work
$b mount -t ext4 -o ro "$image" /root/rig/image || echo "rig: cannot mount the guest image"
$b mount -t ext4 -o rw,noatime "$work" /root/rig/work || echo "rig: cannot mount the work disk"
$b mount -o move /dev /root/dev
$b mount -o move /proc /root/proc
$b mount -o move /sys /root/sys
$b mount -t tmpfs -o mode=0755 run /root/run
exec $b switch_root /root /bin/bash /rig/work/agent
