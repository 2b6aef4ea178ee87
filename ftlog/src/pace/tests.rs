use super::*;

const MS: u64 = 1_000_000;

/// A primary that logs each millisecond it runs and a backup that executes `speed` of it, acks 20
/// ms late. Returns the greatest lag in ms and the mean share of the last second.
fn simulate(speed: f64, seconds: u64) -> (u64, f64) {
    let mut pace = Pace::new(&Config::default(), 0);
    let (mut appended, mut executed) = (0f64, 0f64);
    let mut acks = VecDeque::from(vec![0u64; 20]);
    let (mut worst, mut shares) = (0, 0.0);
    for ms in 0..seconds * 1000 {
        let now = ms * MS;
        if !pace.is_over_limit(now) {
            let before = appended as u64;
            appended += f64::from(pace.share()) / 1000.0;
            if appended as u64 > before {
                pace.appended(before, now);
            }
        }
        executed = (executed + speed).min(appended.floor());
        acks.push_back(executed as u64);
        pace.executed(acks.pop_front().unwrap());
        pace.tick(now);
        worst = worst.max(pace.lag_ns(now) / MS);
        if ms >= (seconds - 1) * 1000 {
            shares += f64::from(pace.share()) / 1e6;
        }
    }
    (worst, shares)
}

#[test]
fn a_fast_backup_costs_nothing() {
    assert!(simulate(1.2, 5).1 > 0.999);
}

#[test]
fn a_slow_backup_slows_the_primary_to_its_speed_and_the_lag_stays_bounded() {
    for speed in [0.95, 0.8, 0.5, 0.2] {
        let (worst, share) = simulate(speed, 60);
        println!("speed {speed}: worst lag {worst} ms, share {share:.3}");
        assert!(worst < 1000, "speed {speed}: lag reached {worst} ms");
        assert!((share - speed).abs() < 0.1, "speed {speed}: share {share}");
    }
}

#[test]
fn a_backup_that_stands_stops_the_primary_and_releases_it() {
    let config = Config::default();
    let mut pace = Pace::new(&config, 0);
    pace.appended(0, 0);
    assert!(!pace.is_over_limit(config.lag_limit_ns - 1));
    assert!(pace.is_over_limit(config.lag_limit_ns));
    pace.executed(1);
    assert_eq!(pace.lag_ns(config.lag_limit_ns), 0);
    for step in 1..300 {
        pace.tick(step * STEP_NS);
    }
    assert_eq!(pace.share(), FULL_SHARE);
}
