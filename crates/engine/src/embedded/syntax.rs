//! `# syntax=`: which frontend a Dockerfile asks for, and whether ours is it.
//!
//! The images `docker/dockerfile` and `docker/dockerfile-upstream`, in any version, mean the language that is built in.
//! Any other frontend is another language: it is refused, because running its image is not supported.

use build_engine_oci::Reference;

use crate::{BuildError, BuildRequest, ExitKind, Place, Report};

/// What BuildKit calls its own built-in frontend.
const BUILT_IN: &str = "dockerfile.v0";

/// The frontend that the request asks for by name, which is the one built in; `None` if it names none.
///
/// The build argument `BUILDKIT_SYNTAX` goes before the Dockerfile's own line.
///
/// # Errors
/// [`ExitKind::Input`] for any other frontend.
pub(super) fn requested(request: &BuildRequest) -> Result<Option<String>, BuildError> {
    let directive = build_engine_dockerfile::detect_syntax(&request.dockerfile);
    let (name, place) = match (request.build_args.get("BUILDKIT_SYNTAX"), directive) {
        (Some(name), _) => (name.clone(), None),
        (None, Some(directive)) => {
            let span = directive.value.span.start..directive.value.span.end;
            let place = Place::new(&request.dockerfile_name, &request.dockerfile, span);
            (directive.value.value, Some(place))
        }
        (None, None) => return Ok(None),
    };
    let image = name.split_whitespace().next().unwrap_or_default();
    if image.is_empty() {
        return Ok(None);
    }
    let is_dockerfile = image.parse::<Reference>().is_ok_and(|reference| {
        reference.domain() == "docker.io"
            && matches!(reference.path(), "docker/dockerfile" | "docker/dockerfile-upstream")
    });
    if is_dockerfile || image == BUILT_IN {
        return Ok(Some(image.to_owned()));
    }
    let message = format!("the frontend `{image}` is not supported: only `docker/dockerfile` is, and it is built in");
    Err(BuildError::new(ExitKind::Input, Report::new("unsupported", message).at(place)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(dockerfile: &str, argument: Option<&str>) -> String {
        let mut request: BuildRequest = crate::request::empty("test");
        request.dockerfile = dockerfile.to_owned();
        request.build_args.extend(argument.map(|value| ("BUILDKIT_SYNTAX".to_owned(), value.to_owned())));
        match requested(&request) {
            Ok(name) => name.unwrap_or_default(),
            Err(error) => format!("{:?}", error.kind),
        }
    }

    #[test]
    fn f1_006_the_dockerfile_frontend_is_built_in_and_any_other_refused() {
        for (dockerfile, argument, expected) in [
            ("FROM scratch", None, ""),
            ("# syntax=docker/dockerfile:1\nFROM scratch", None, "docker/dockerfile:1"),
            (
                "# syntax = docker.io/docker/dockerfile-upstream:master-labs\n",
                None,
                "docker.io/docker/dockerfile-upstream:master-labs",
            ),
            ("#syntax=docker/dockerfile:1.7@sha256:x\n", None, "Input"),
            ("# syntax=example.com/other\nFROM scratch", None, "Input"),
            ("# syntax=example.com/other\nFROM scratch", Some("dockerfile.v0"), "dockerfile.v0"),
            ("FROM scratch", Some("example.com/other"), "Input"),
            ("FROM scratch\n# syntax=example.com/other", None, ""),
        ] {
            assert_eq!(of(dockerfile, argument), expected, "{dockerfile:?} {argument:?}");
        }
    }
}
