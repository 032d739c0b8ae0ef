//! The table of rules: names, descriptions and addresses are BuildKit's, so that what people find about them elsewhere
//! holds here, and `# check=skip=` means the same.
//!
//! Source: BuildKit `frontend/dockerfile/linter/ruleset.go`; Docker's build checks reference.

/// A rule of the build checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Its name, as in `# check=skip=NAME`.
    pub name: &'static str,
    /// What it is about, in general.
    pub description: &'static str,
    /// The last part of the address of its explanation; `None` where there is none.
    slug: Option<&'static str>,
    /// Whether it must be switched on with `experimental=`.
    pub experimental: bool,
}

impl Rule {
    /// Where it is explained.
    pub fn url(&self) -> Option<String> {
        self.slug.map(|slug| format!("https://docs.docker.com/go/dockerfile/rule/{slug}/"))
    }

    /// Finds a rule by its name.
    pub fn named(name: &str) -> Option<&'static Rule> {
        RULES.iter().copied().find(|rule| rule.name == name)
    }
}

macro_rules! rules {
    ($($id:ident $name:literal $slug:expr, $experimental:literal, $description:literal;)*) => {
        $(
            #[doc = $description]
            pub const $id: Rule =
                Rule { name: $name, description: $description, slug: $slug, experimental: $experimental };
        )*
        /// All rules, in BuildKit's order.
        pub static RULES: &[&Rule] = &[$(&$id),*];
    };
}

rules! {
    STAGE_NAME_CASING "StageNameCasing" Some("stage-name-casing"), false,
        "Stage names should be lowercase";
    FROM_AS_CASING "FromAsCasing" Some("from-as-casing"), false,
        "The 'as' keyword should match the case of the 'from' keyword";
    NO_EMPTY_CONTINUATION "NoEmptyContinuation" Some("no-empty-continuation"), false,
        "Empty continuation lines will become errors in a future release";
    CONSISTENT_INSTRUCTION_CASING "ConsistentInstructionCasing" Some("consistent-instruction-casing"), false,
        "All commands within the Dockerfile should use the same casing (either upper or lower)";
    DUPLICATE_STAGE_NAME "DuplicateStageName" Some("duplicate-stage-name"), false,
        "Stage names should be unique";
    RESERVED_STAGE_NAME "ReservedStageName" Some("reserved-stage-name"), false,
        "Reserved words should not be used as stage names";
    JSON_ARGS_RECOMMENDED "JSONArgsRecommended" Some("json-args-recommended"), false,
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals";
    MAINTAINER_DEPRECATED "MaintainerDeprecated" Some("maintainer-deprecated"), false,
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author";
    UNDEFINED_ARG_IN_FROM "UndefinedArgInFrom" Some("undefined-arg-in-from"), false,
        "FROM command must use declared ARGs";
    WORKDIR_RELATIVE_PATH "WorkdirRelativePath" Some("workdir-relative-path"), false,
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes";
    UNDEFINED_VAR "UndefinedVar" Some("undefined-var"), false,
        "Variables should be defined before their use";
    MULTIPLE_INSTRUCTIONS_DISALLOWED "MultipleInstructionsDisallowed" Some("multiple-instructions-disallowed"), false,
        "Multiple instructions of the same type should not be used in the same stage";
    LEGACY_KEY_VALUE_FORMAT "LegacyKeyValueFormat" Some("legacy-key-value-format"), false,
        "Legacy key/value format with whitespace separator should not be used";
    INVALID_BASE_IMAGE_PLATFORM "InvalidBaseImagePlatform" None, false,
        "Base image platform does not match expected target platform";
    REDUNDANT_TARGET_PLATFORM "RedundantTargetPlatform" Some("redundant-target-platform"), false,
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior";
    SECRETS_USED_IN_ARG_OR_ENV "SecretsUsedInArgOrEnv" Some("secrets-used-in-arg-or-env"), false,
        "Sensitive data should not be used in the ARG or ENV commands";
    INVALID_DEFAULT_ARG_IN_FROM "InvalidDefaultArgInFrom" Some("invalid-default-arg-in-from"), false,
        "Default value for global ARG results in an empty or invalid base image name";
    FROM_PLATFORM_FLAG_CONST_DISALLOWED "FromPlatformFlagConstDisallowed" Some("from-platform-flag-const-disallowed"), false,
        "FROM --platform flag should not use a constant value";
    COPY_IGNORED_FILE "CopyIgnoredFile" Some("copy-ignored-file"), false,
        "Attempting to Copy file that is excluded by .dockerignore";
    INVALID_DEFINITION_DESCRIPTION "InvalidDefinitionDescription" Some("invalid-definition-description"), true,
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment.";
    EXPOSE_PROTO_CASING "ExposeProtoCasing" Some("expose-proto-casing"), false,
        "Protocol in EXPOSE instruction should be lowercase";
    EXPOSE_INVALID_FORMAT "ExposeInvalidFormat" Some("expose-invalid-format"), false,
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release";
}
