ft-ctl bench --config /rig/work/kvm.toml --patience 5 log --quick \
    --only idle --only boot --only redis --only compute
