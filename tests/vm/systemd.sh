#!/bin/sh
# Run by the guest's init in its root before systemd is: makes the units that
# it is to start, which are those that every service builds on, and the script.
cd /run || exit
mkdir -p systemd/system
cd systemd/system || exit
: >/etc/fstab

# Where it is there, it forbids packages to start services: in containers mostly.
rm -f /usr/sbin/policy-rc.d

# What Debian or the host's administrator has enabled is not the test's. There
# is no udev: devtmpfs makes the nodes.
for unit in /lib/systemd/system/sysinit.target.wants/* /etc/systemd/system/*.wants/* \
	tmp.mount timers.target systemd-udevd-control.socket systemd-udevd-kernel.socket; do
	ln -sf /dev/null "${unit##*/}"
done
rm -f systemd-journald.service

cat >guest.target <<'END'
[Unit]
Description=What the test wants of this guest
Requires=basic.target guest-script.service
END

action='exec /bin/sh /ctl/cmd'
[ ! -e /ctl/interactive ] || action='setsid busybox cttyhack /bin/sh'
cat >guest-script.service <<END
[Unit]
Description=The script that run.sh was given
After=basic.target

[Service]
Environment=PATH=$PATH HOME=/root
WorkingDirectory=/share
StandardOutput=tty
TTYPath=/dev/console
ExecStart=/bin/sh -c '($action); echo \$\$? >/ctl/status; sync; exec busybox reboot -f'
END
