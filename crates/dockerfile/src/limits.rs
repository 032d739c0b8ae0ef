//! Limits of the parser and of word expansion: text is untrusted, and work on it stays bounded.

/// Largest Dockerfile, in bytes.
pub const MAX_SOURCE_BYTES: usize = 16 << 20;
/// Longest line, in bytes: as written, and again after continuation lines were joined.
pub const MAX_LINE_BYTES: usize = 1 << 20;
/// Most lines that continuation may join into one instruction.
pub const MAX_CONTINUATION_LINES: usize = 10_000;
/// Most instructions in one Dockerfile.
pub const MAX_INSTRUCTIONS: usize = 10_000;
/// Most stages in one Dockerfile.
pub const MAX_STAGES: usize = 1_000;
/// Most heredocs of one instruction: each is read to its end before the next.
pub const MAX_HEREDOCS: usize = 1_000;
/// Longest word that ends a heredoc, in bytes. As the name of a file it would be too long long before.
pub const MAX_HEREDOC_NAME_BYTES: usize = 4_096;
/// Longest result of one expansion, in bytes.
pub const MAX_EXPANSION_BYTES: usize = 1 << 20;
/// Deepest nesting of `${…}`.
pub const MAX_EXPANSION_DEPTH: usize = 100;
