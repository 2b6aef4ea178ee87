//! Errors as people read them: the whole chain of sources, once, on one line.

use std::error::Error;

/// `error` and its sources, joined by `: `; a source whose text the error before it already ends
/// with is not said twice.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("the outer thing failed")]
        Silent(#[source] std::io::Error),
        #[error("the outer thing failed: {0}")]
        Loud(#[source] std::io::Error),
    }

    #[test]
    fn says_each_cause_once() {
        let cause = || std::io::Error::other("the inner one");
        for error in [Outer::Silent(cause()), Outer::Loud(cause())] {
            assert_eq!(chain(&error), "the outer thing failed: the inner one");
        }
    }
}
