#!/bin/busybox sh
# Process 1 of the virtual machine: mounts the host's files and the machine's own folders, switches to them, and runs
# the job. It writes to two virtio ports: the tests' output to `output`; `up <kernel> <seconds>`, `exit <code>` and
# `tainted <bits>` to `control`, a line each.

port() { # NAME: the device of the virtio port of this name
    for port in /sys/class/virtio-ports/*; do
        [ "$(busybox cat "$port/name")" = "$1" ] && echo "/dev/${port##*/}"
    done
}
say() { echo "$*" >"$(port control)"; }
end() {
    busybox sync
    busybox poweroff -f
}

if [ "${1-}" = inside ]; then
    # The second start, on the host's files.
    PATH=/run/vm
    say up "$(busybox uname -r)" "$(busybox cut -d' ' -f1 /proc/uptime)"
    if [ -c /dev/hvc0 ]; then
        busybox setsid -c /bin/sh /run/vm/job <>/dev/hvc0 >&0 2>&0
    else
        /bin/sh /run/vm/job </dev/null >"$(port output)" 2>&1
    fi
    code=$?
    say tainted "$(busybox cat /proc/sys/kernel/tainted)"
    say exit $code
    end
fi

PATH=/bin
busybox mkdir -p /proc /sys /dev /host
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
if [ -e /probe ]; then
    say up "$(busybox uname -r)" 0
    end
fi

# The host's files, read-only. cache=loose keeps a file in memory once it is read: a change on the host meanwhile goes
# unseen.
options=trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose
if ! busybox mount -t 9p -o $options host /host; then
    say exit 1
    end
fi
cd /host
# Writable folders, in memory. The host's /tmp stays visible: the repository may be there.
busybox mount -t tmpfs -o mode=0755 tmpfs run
busybox mkdir -p run/vm/upper run/vm/work
busybox mount -t overlay -o lowerdir=tmp,upperdir=run/vm/upper,workdir=run/vm/work overlay tmp
busybox chmod 1777 tmp
busybox cp /bin/busybox /job /init run/vm/

busybox mkdir -p /dev/pts /dev/shm
busybox mount -t devpts devpts /dev/pts
busybox mount -t tmpfs tmpfs /dev/shm
for stream in stdin:0 stdout:1 stderr:2; do busybox ln -s "/proc/self/fd/${stream#*:}" "/dev/${stream%:*}"; done
busybox ln -s /proc/self/fd /dev/fd
busybox mount -t bpf bpf /sys/fs/bpf
busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
busybox mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
busybox ifconfig lo 127.0.0.1 up
busybox hostname wsl-mirror-vm
for directory in proc sys dev; do busybox mount -o move /$directory $directory; done
# No chroot: the lab joins mount namespaces, and setns(2) leads to the real root.
exec busybox switch_root /host /run/vm/busybox sh /run/vm/init inside
