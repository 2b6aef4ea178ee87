//! The protocol's bounds. All times are nanoseconds of the local host's monotonic clock.

use serde::{Deserialize, Serialize};
use thiserror::Error;

const MS: u64 = 1_000_000;

/// Bounds of detection, flushing and lag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Something is sent at least this often, if only a heartbeat.
    pub heartbeat_ns: u64,
    /// A peer that was silent for this long is suspected.
    pub suspect_after_ns: u64,
    /// How long a primary waits for its backup at the start before it asks to go on alone.
    pub start_wait_ns: u64,
    /// An unanswered claim is asked again after this long.
    pub claim_retry_ns: u64,
    /// Entries that no output waits for are sent after this long at the latest.
    pub flush_after_ns: u64,
    /// … or when they are this many bytes.
    pub batch_bytes: usize,
    /// The primary logs its progress when it has logged nothing else for this long.
    pub progress_ns: u64,
    /// The backup tells at most this often how far it has executed.
    pub ack_interval_ns: u64,
    /// The primary stalls when this many bytes of log and output are not acknowledged.
    pub log_buffer_bytes: usize,
    /// The primary is slowed when the backup's execution is this far behind …
    pub lag_target_ns: u64,
    /// … and stands when it is this far behind.
    pub lag_limit_ns: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat_ns: 50 * MS,
            suspect_after_ns: 1000 * MS,
            start_wait_ns: 60_000 * MS,
            claim_retry_ns: 100 * MS,
            flush_after_ns: MS,
            batch_bytes: 64 << 10,
            progress_ns: 2 * MS,
            ack_interval_ns: 2 * MS,
            log_buffer_bytes: 64 << 20,
            lag_target_ns: 100 * MS,
            lag_limit_ns: 1000 * MS,
        }
    }
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("{name} must not be 0")]
    Zero { name: &'static str },
    #[error("{less} ({less_ns} ns) must be less than half of {more} ({more_ns} ns)")]
    Order {
        less: &'static str,
        less_ns: u64,
        more: &'static str,
        more_ns: u64,
    },
}

impl Config {
    /// Whether the bounds make sense together.
    pub fn check(&self) -> Result<(), ConfigError> {
        let nonzero = [
            ("heartbeat", self.heartbeat_ns),
            ("suspect-after", self.suspect_after_ns),
            ("start-wait", self.start_wait_ns),
            ("claim-retry", self.claim_retry_ns),
            ("progress", self.progress_ns),
            ("ack-interval", self.ack_interval_ns),
            ("batch-bytes", self.batch_bytes as u64),
            ("log-buffer-bytes", self.log_buffer_bytes as u64),
            ("lag-target", self.lag_target_ns),
        ];
        if let Some((name, _)) = nonzero.into_iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero { name });
        }
        let ordered = [
            (
                "heartbeat",
                self.heartbeat_ns,
                "suspect-after",
                self.suspect_after_ns,
            ),
            (
                "lag-target",
                self.lag_target_ns,
                "lag-limit",
                self.lag_limit_ns,
            ),
        ];
        for (less, less_ns, more, more_ns) in ordered {
            if less_ns >= more_ns.div_ceil(2) {
                return Err(ConfigError::Order {
                    less,
                    less_ns,
                    more,
                    more_ns,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_sound_and_nonsense_is_named() {
        let sound = Config::default();
        assert_eq!(sound.check(), Ok(()));
        let zero = Config {
            heartbeat_ns: 0,
            ..sound.clone()
        };
        assert_eq!(zero.check(), Err(ConfigError::Zero { name: "heartbeat" }));
        let slow = Config {
            heartbeat_ns: sound.suspect_after_ns,
            ..sound.clone()
        };
        assert!(matches!(
            slow.check(),
            Err(ConfigError::Order {
                less: "heartbeat",
                ..
            })
        ));
        let lag = Config {
            lag_limit_ns: sound.lag_target_ns,
            ..sound
        };
        assert!(matches!(
            lag.check(),
            Err(ConfigError::Order {
                less: "lag-target",
                ..
            })
        ));
    }
}
