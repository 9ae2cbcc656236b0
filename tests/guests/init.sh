#!/bin/busybox sh
# The guest's init. It loads the modules it was given, opens its two ports and does what it is told over the first:
#   script N   then N bytes: a shell script; its output comes back as it is, then "TOKEN end STATUS"
#   file N PATH   then N bytes: a file to make, executable
#   clock SECONDS, reboot, poweroff
# The second port takes letters for the kernel's sysrq, which answers when nothing else does.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin HOME=/root TERM=dumb PYTHONDONTWRITEBYTECODE=1
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs run /run
mkdir /dev/shm /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t devpts pts /dev/pts
ip link set lo up 2>/dev/null
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "guest: insmod $module failed"
done
. /init.conf
[ -w /proc/sys/kernel/hung_task_timeout_secs ] && echo "$HUNG_TASK_S" >/proc/sys/kernel/hung_task_timeout_secs

port() {
    i=0
    while [ $i -lt 100 ]; do
        for p in /sys/class/virtio-ports/*; do
            [ "$(cat "$p/name" 2>/dev/null)" = "$1" ] && [ -e "/dev/${p##*/}" ] && { echo "/dev/${p##*/}"; return; }
        done
        i=$((i + 1))
        sleep 0.1
    done
    echo "guest: no port $1" >/dev/console
    poweroff -f
}

keys=$(port guest.keys)
(while read -r key; do echo "$key" >/proc/sysrq-trigger; done <"$keys") &
commands=$(port guest.commands)
exec 3<>"$commands"
read -r up idle </proc/uptime
echo "$TOKEN hello $up" >&3
while read -r verb number path <&3; do
    case $verb in
    script)
        dd bs="$number" count=1 iflag=fullblock <&3 >/run/script 2>/dev/null
        # our orders are not for it to read
        sh /run/script </dev/null >&3 2>&3 3>&-
        echo "$TOKEN end $?" >&3
        ;;
    file)
        mkdir -p "${path%/*}"
        dd bs="$number" count=1 iflag=fullblock <&3 >"$path" 2>/dev/null
        chmod 755 "$path"
        ;;
    clock) date -s "@$number" >/dev/null ;;
    reboot) reboot -f ;;
    poweroff) poweroff -f ;;
    esac
done
echo "guest: the port is gone" >/dev/console
poweroff -f
