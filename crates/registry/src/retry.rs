//! When to try again, and how long to wait before.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::settings::Limits;
use crate::{Error, settings};

/// How often one transfer may be resumed in all, however well it goes on in between.
const MAX_RESUMES: u32 = 20;

/// Further tries where nobody answers, whatever the settings allow for answers that ask for patience.
const SILENCE_RETRIES: u32 = 2;

/// Counts the tries of one request or transfer.
#[derive(Debug)]
pub(crate) struct Patience {
    limits: Limits,
    retries: u32,
    without_progress: u32,
    total: u32,
}

impl Patience {
    /// Allows as many further tries as the settings say, but at most `most`.
    pub(crate) fn new(limits: &Limits, most: u32) -> Self {
        Self { limits: limits.clone(), retries: limits.retries.min(most), without_progress: 0, total: 0 }
    }

    /// Notes that the transfer went on.
    pub(crate) fn progress(&mut self) {
        self.without_progress = 0;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// `error` itself where another try makes no sense, or there were enough of them.
    pub(crate) async fn wait(&mut self, error: Error) -> Result<(), Error> {
        if !error.is_transient() {
            return Err(error);
        }
        self.again(error).await
    }

    /// The same for errors that say nothing about whether another try makes sense.
    pub(crate) async fn again(&mut self, error: Error) -> Result<(), Error> {
        // Who is not there, or silent, seldom comes back within seconds; and somebody waits for the answer.
        let retries = if error.is_silence() { self.retries.min(SILENCE_RETRIES) } else { self.retries };
        if self.without_progress >= retries || self.total >= MAX_RESUMES.max(self.retries) {
            return Err(error);
        }
        let wait = delay(&self.limits, self.without_progress, error.retry_after(), random_fraction());
        tracing::debug!(error = %error, wait_ms = wait.as_millis(), "trying again");
        self.without_progress += 1;
        self.total += 1;
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The wait before further try number `tries` (from 0); `fraction` between 0 and 1 is the jitter.
fn delay(limits: &Limits, tries: u32, retry_after: Option<Duration>, fraction: f64) -> Duration {
    let most = settings::seconds(limits.max_wait_seconds);
    let doubled = limits.backoff_seconds * f64::from(2_u32.saturating_pow(tries.min(16)));
    let back_off = settings::seconds(doubled * (0.5 + fraction / 2.0));
    back_off.max(retry_after.unwrap_or_default()).min(most)
}

fn random_fraction() -> f64 {
    // Every `RandomState` has its own keys; that is random enough to spread tries.
    let bits = RandomState::new().build_hasher().finish() >> 32;
    bits as f64 / f64::from(u32::MAX)
}

/// What `Retry-After` asks for, in seconds or as a date. Source: RFC 9110, 10.2.3.
pub(crate) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        for (value, expected) in [
            ("2", Some(2)),
            (" 0 ", Some(0)),
            ("1000000000", Some(1_000_000_000)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn waits_double_and_are_capped() {
        let limits = Limits::default();
        let wait = |tries, after: Option<u64>| delay(&limits, tries, after.map(Duration::from_secs), 1.0).as_secs_f64();
        assert_eq!([wait(0, None), wait(1, None), wait(2, None)], [0.5, 1.0, 2.0]);
        assert_eq!(wait(30, None), 60.0);
        assert_eq!(wait(0, Some(7)), 7.0);
        assert_eq!(wait(0, Some(1_000_000_000)), 60.0);
        assert_eq!(delay(&limits, 0, None, 0.0).as_secs_f64(), 0.25);
    }
}
