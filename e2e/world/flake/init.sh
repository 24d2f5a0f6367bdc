#!@sh@
# Stage 2: what the boot loader's init= runs as process 1.
PATH=@tools@
@out@/activate > /var/log/stage-2.log 2>&1
ln -sfn @out@ /run/booted-system
PATH=/usr/sbin:/usr/bin:/sbin:/bin exec /lib/systemd/systemd --log-target=journal
