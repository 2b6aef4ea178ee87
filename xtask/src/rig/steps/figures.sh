# A pair shares one emulated core here. At a tenth of the host's time the guest's timer leaves it most
# of its half; at more, the figures would tell of nothing but ticks.
sed 's/^clock_percent = .*/clock_percent = 10/' /rig/work/kvm.toml >/rig/work/figures.toml
ft-ctl bench --config /rig/work/figures.toml --patience 5 log --quick \
    --only idle --only boot --only redis --only compute
