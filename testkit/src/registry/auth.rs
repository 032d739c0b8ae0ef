//! Who may do what at a [`super::FakeRegistry`]: Basic, or Bearer tokens from its own `/token`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::distribution::Resource;
use super::http::{Reply, Request, parse_form};
use crate::sha256;

/// How tokens are given out.
#[derive(Clone, Debug, Default)]
pub struct TokenOptions {
    /// How long tokens are valid, and what the answer says. `None`: the answer does not say, and they never expire.
    pub expires_in_seconds: Option<u64>,
    /// What the challenge names as the realm, instead of this registry's own `/token`.
    pub realm: Option<String>,
    /// What the challenge names as the service, instead of `host:port`.
    pub service: Option<String>,
    /// The scope in the challenge, instead of the one that the request needs.
    pub scope: Option<String>,
    /// `GET /token` is answered with 405.
    pub refuses_get: bool,
    /// `POST /token` is answered with 405.
    pub refuses_post: bool,
    /// An identity token that is as good as user and password (`grant_type=refresh_token`).
    pub accepts_refresh_token: Option<String>,
    /// A token that is valid for everything: another server gives it out.
    pub accepts_token: Option<String>,
    /// Who shows no credentials may pull.
    pub allows_anonymous_pull: bool,
    /// Nobody may push, whatever they ask for: tokens are for pulling only.
    pub grants_pull_only: bool,
    /// The answer has `access_token` only, and not `token` beside it.
    pub names_access_token_only: bool,
}

#[derive(Default)]
pub(super) enum Policy {
    #[default]
    Open,
    Basic {
        user: String,
        password: String,
    },
    Token {
        user: String,
        password: String,
        options: Box<TokenOptions>,
    },
}

struct Token {
    /// `repository:NAME` and the actions.
    scopes: Vec<(String, Vec<String>)>,
    expires: Option<Instant>,
}

/// The door of a registry.
#[derive(Default)]
pub(super) struct Door {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    policy: Policy,
    tokens: BTreeMap<String, Token>,
    token_count: u64,
}

impl Door {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, policy: Policy) {
        self.lock().policy = policy;
    }

    pub(super) fn revoke(&self) {
        self.lock().tokens.clear();
    }

    pub(super) fn token_count(&self) -> u64 {
        self.lock().token_count
    }

    /// Returns the refusal for a request that may not be made.
    pub(super) fn check(&self, request: &Request, origin: &str, host: &str) -> Result<(), Reply> {
        let state = self.lock();
        match &state.policy {
            Policy::Open => Ok(()),
            Policy::Basic { user, password } => match basic(request) {
                Some((name, word)) if name == *user && word == *password => Ok(()),
                _ => Err(unauthorized().header("WWW-Authenticate", "Basic realm=\"the test registry\"")),
            },
            Policy::Token { options, .. } => {
                let repository = Resource::parse(&request.path).and_then(|resource| resource.repository());
                let actions: &[&str] =
                    if matches!(request.method.as_str(), "GET" | "HEAD") { &["pull"] } else { &["pull", "push"] };
                let needed = repository.map(|repository| (format!("repository:{repository}"), actions));
                let problem = match state.permits(request, needed.as_ref()) {
                    Ok(()) => return Ok(()),
                    Err(problem) => problem,
                };
                let realm = options.realm.clone().unwrap_or_else(|| format!("{origin}/token"));
                let service = options.service.as_deref().unwrap_or(host);
                let mut challenge = format!("Bearer realm=\"{realm}\",service=\"{service}\"");
                let scope = options
                    .scope
                    .clone()
                    .or_else(|| needed.map(|(name, actions)| format!("{name}:{}", actions.join(","))));
                if let Some(scope) = scope {
                    challenge.push_str(&format!(",scope=\"{scope}\""));
                }
                if let Some(problem) = problem {
                    challenge.push_str(&format!(",error=\"{problem}\""));
                }
                Err(unauthorized().header("WWW-Authenticate", &challenge))
            }
        }
    }

    /// Whether the request shows what is needed to pull from `repository`.
    pub(super) fn may_pull(&self, request: &Request, repository: &str) -> bool {
        let state = self.lock();
        match state.policy {
            Policy::Open | Policy::Basic { .. } => true,
            Policy::Token { .. } => {
                state.permits(request, Some(&(format!("repository:{repository}"), &["pull"]))).is_ok()
            }
        }
    }

    /// Answers at `/token`, where there is one.
    pub(super) fn token(&self, request: &Request) -> Option<Reply> {
        if request.path != "/token" {
            return None;
        }
        let mut state = self.lock();
        let Policy::Token { user, password, options } = &state.policy else { return None };
        let form = parse_form(&String::from_utf8_lossy(&request.body));
        let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let refusal = || Reply::error(401, "UNAUTHORIZED", "incorrect username or password");
        let (scopes, is_known, wants_refresh) = match request.method.as_str() {
            "GET" if !options.refuses_get => {
                let is_known = match (basic(request), request.header("authorization")) {
                    (Some((name, word)), _) if name == *user && word == *password => true,
                    (None, None) => false,
                    _ => return Some(refusal()),
                };
                let scopes: Vec<String> =
                    request.query.iter().filter(|(key, _)| key == "scope").map(|(_, value)| value.clone()).collect();
                (scopes, is_known, request.parameter("offline_token") == Some("true"))
            }
            "POST" if !options.refuses_post => {
                let is_right = match field("grant_type").as_deref() {
                    Some("password") => {
                        field("username").as_ref() == Some(user) && field("password").as_ref() == Some(password)
                    }
                    Some("refresh_token") => {
                        options.accepts_refresh_token.is_some()
                            && field("refresh_token") == options.accepts_refresh_token
                    }
                    _ => return Some(Reply::error(400, "UNSUPPORTED", "unsupported grant type")),
                };
                if !is_right {
                    return Some(refusal());
                }
                let scopes = form.iter().filter(|(key, _)| key == "scope").map(|(_, value)| value.clone()).collect();
                (scopes, true, field("access_type").as_deref() == Some("offline"))
            }
            _ => return Some(Reply::error(405, "UNSUPPORTED", "method not allowed")),
        };
        if !is_known && !options.allows_anonymous_pull {
            return Some(refusal().header("WWW-Authenticate", "Basic realm=\"the test token server\""));
        }
        let granted = |action: &&str| *action == "pull" || (is_known && !options.grants_pull_only);
        let scopes: Vec<(String, Vec<String>)> = scopes
            .iter()
            .flat_map(|text| text.split(' '))
            .filter_map(|scope| scope.rsplit_once(':'))
            .map(|(name, actions)| (name.to_owned(), actions.split(',').filter(granted).map(str::to_owned).collect()))
            .collect();
        let mut answer = json!({});
        let expires = options.expires_in_seconds.map(|seconds| {
            answer["expires_in"] = json!(seconds);
            Instant::now() + Duration::from_secs(seconds)
        });
        if let (true, Some(token)) = (wants_refresh, &options.accepts_refresh_token) {
            answer["refresh_token"] = json!(token);
        }
        let only_access_token = options.names_access_token_only || request.method == "POST";
        state.token_count += 1;
        let name = format!("token-{}", sha256(format!("{} {}", request.listener, state.token_count).as_bytes()));
        answer["access_token"] = json!(name);
        if !only_access_token {
            answer["token"] = json!(name);
        }
        state.tokens.insert(name, Token { scopes, expires });
        Some(Reply::ok("application/json", answer.to_string()))
    }
}

impl State {
    /// # Errors
    /// What a challenge says about the token that was shown; `None` if there was none.
    fn permits(&self, request: &Request, needed: Option<&(String, &[&str])>) -> Result<(), Option<&'static str>> {
        let Some(name) = request.header("authorization").and_then(|text| text.strip_prefix("Bearer ")) else {
            return Err(None);
        };
        if let Policy::Token { options, .. } = &self.policy
            && options.accepts_token.as_deref() == Some(name)
        {
            return Ok(());
        }
        let Some(token) = self.tokens.get(name) else { return Err(Some("invalid_token")) };
        if token.expires.is_some_and(|time| time <= Instant::now()) {
            return Err(Some("invalid_token"));
        }
        let Some((repository, actions)) = needed else { return Ok(()) };
        let holds = |action: &&str| {
            token.scopes.iter().any(|(name, granted)| name == repository && granted.iter().any(|it| it == action))
        };
        if actions.iter().all(holds) { Ok(()) } else { Err(Some("insufficient_scope")) }
    }
}

fn unauthorized() -> Reply {
    Reply::error(401, "UNAUTHORIZED", "authentication required")
}

/// User and password of a request.
pub(super) fn basic(request: &Request) -> Option<(String, String)> {
    let encoded = request.header("authorization")?.strip_prefix("Basic ")?;
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}
