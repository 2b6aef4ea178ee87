#!/bin/bash
# PID 1 of the rig: takes commands from the host over a virtio port, or else the second serial port,
# and runs them, each within its time. A command is a line "TOKEN SECONDS LENGTH SCRIPT" with the script
# in base64 of LENGTH characters; what it writes goes to the port as it is, and then comes a line
# "@@TOKEN STATUS". Whatever it left running is ended first.

export PATH=/rig/work/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C TERM=dumb
export TMPDIR=/rig/work/tmp LOCKSTEP_CACHE=/rig/image LOCKSTEP_DIR=/rig/work/tmp/machines

mount -t devpts -o mode=0620,gid=5 devpts /dev/pts 2>/dev/null || {
    mkdir -p /dev/pts && mount -t devpts -o mode=0620,gid=5 devpts /dev/pts
}
mkdir -p /dev/shm && mount -t tmpfs shm /dev/shm
hostname rig
ip link set lo up
ulimit -c 0

port=
for name in /sys/class/virtio-ports/*/name; do
    [ "$(cat "$name")" = rig ] && port=/dev/$(basename "$(dirname "$name")")
done
if [ -z "$port" ]; then
    port=/dev/ttyS1
    stty -F "$port" raw -echo 115200 clocal -hupcl -crtscts
fi
exec 3<>"$port" || { echo "rig: no port to the host" >/dev/console; exec sleep infinity; }

printf '@@ready %s\n' "$(uname -r)" >&3
while read -r token seconds length script <&3; do
    if [ "${#script}" != "$length" ]; then
        printf '\n@@%s damaged\n' "$token" >&3
        continue
    fi
    rm -rf /rig/work/tmp
    mkdir -p "$TMPDIR"
    cd "$TMPDIR" || cd /
    printf %s "$script" | base64 -d >/run/script
    # A process group of its own, which `timeout` makes; a second later what ignores it is killed.
    timeout -k 5 "$seconds" bash /run/script </dev/null >&3 2>&3 3>&-
    status=$?
    # What was left running; from PID 1 this spares PID 1.
    kill -KILL -1 2>/dev/null
    # After a failure the rig is started anew with this disk.
    sync
    printf '\n@@%s %d\n' "$token" "$status" >&3
done
echo "rig: the host's end of the port is closed" >/dev/console
exec sleep infinity
