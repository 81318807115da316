//! `#[husk::test]`: a test whose body runs in a guest of its own.
//!
//! The attribute makes of a function a `#[test]` that calls `husk::fixture::in_guest` with the function
//! and with a builder that has been told what stands in the brackets. It looks at tokens and parses no
//! Rust: what is between the words it hands on.

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// The builder's methods that may stand in the brackets, each with one value.
const WORDS: [&str; 9] =
    ["kernel", "modules", "initrd", "append", "cpus", "memory", "root", "timeout", "budget"];
/// Whether the test is wanted at all.
const WHEN: &str = "when";

/// A test whose body runs in a guest: `#[husk::test(memory = "256M", cpus = 2)]`.
///
/// What stands in the brackets are methods of `husk::VmBuilder` with one value each, of any expression:
/// `kernel`, `modules`, `initrd`, `append`, `cpus`, `memory`, `root`, `timeout`, `budget`; and `when = EXPR`,
/// where the test is skipped unless it is true. The function takes nothing and gives nothing, or a
/// `Result<(), E>`.
///
/// In the guest the test is root, in `/`, and has the host's programs and libraries to read unless `root`
/// is given. What it prints and why it panics comes out as of any test.
#[proc_macro_attribute]
pub fn test(brackets: TokenStream, function: TokenStream) -> TokenStream {
    expand(brackets, function).unwrap_or_else(|words| {
        // A string's `Debug` is a literal of Rust's, so this is never empty.
        format!("::core::compile_error!({words:?});").parse().unwrap_or_default()
    })
}

fn expand(brackets: TokenStream, function: TokenStream) -> Result<TokenStream, String> {
    let mut when = source("|| true")?;
    let mut build = source("|builder| builder")?;
    for (word, value) in options(brackets)? {
        if word == WHEN {
            when = source("||")?;
            when.extend([group(Delimiter::Brace, value)]);
        } else {
            build.extend(source(&format!(".{word}"))?);
            build.extend([group(Delimiter::Parenthesis, value)]);
        }
    }
    let Function { attributes, name, result, body } = Function::of(function)?;
    let head = source(&format!("fn {name}()"))?;

    let mut arguments = source(&format!("::core::module_path!(), {name:?},"))?;
    arguments.extend(when);
    arguments.extend(source(",")?);
    arguments.extend(build);
    arguments.extend(source(&format!(", {name}"))?);

    let mut inside = head.clone();
    inside.extend(result.clone());
    inside.extend([body]);
    inside.extend(source("::husk::fixture::in_guest")?);
    inside.extend([group(Delimiter::Parenthesis, arguments)]);

    let mut all = attributes;
    all.extend(source("#[::core::prelude::v1::test]")?);
    all.extend(head);
    all.extend(result);
    all.extend([group(Delimiter::Brace, inside)]);
    Ok(all)
}

/// The tokens of a piece of Rust.
fn source(text: &str) -> Result<TokenStream, String> {
    text.parse().map_err(|e| format!("#[husk::test]: {e}"))
}

fn group(delimiter: Delimiter, inner: TokenStream) -> TokenTree {
    TokenTree::Group(Group::new(delimiter, inner))
}

/// What stands in the brackets: `WORD = VALUE`, with commas between them.
fn options(brackets: TokenStream) -> Result<Vec<(String, TokenStream)>, String> {
    let mut options = Vec::new();
    let mut tokens = brackets.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let word = token.to_string();
        if word != WHEN && !WORDS.contains(&word.as_str()) {
            let words = WORDS.join(", ");
            return Err(format!("#[husk::test]: `{word}` is none of {words}, {WHEN}"));
        }
        if !tokens.next().is_some_and(|token| is(&token, '=')) {
            return Err(format!("#[husk::test]: {word} = what?"));
        }
        let mut value = TokenStream::new();
        while let Some(token) = tokens.next_if(|token| !is(token, ',')) {
            value.extend([token]);
        }
        if value.is_empty() {
            return Err(format!("#[husk::test]: {word} = what?"));
        }
        tokens.next();
        options.push((word, value));
    }
    Ok(options)
}

fn is(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

/// Whether `word` stands in these tokens as a word of Rust's: not in a string, as the text of a doc comment
/// is one.
fn has_word(token: TokenTree, word: &str) -> bool {
    match token {
        TokenTree::Ident(ident) => ident.to_string() == word,
        TokenTree::Group(group) => group.stream().into_iter().any(|token| has_word(token, word)),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    }
}

/// The parts of a function.
struct Function {
    attributes: TokenStream,
    name: String,
    /// `-> …`, or nothing.
    result: TokenStream,
    body: TokenTree,
}

impl Function {
    fn of(tokens: TokenStream) -> Result<Function, String> {
        const WANTED: &str =
            "#[husk::test] stands before a function without arguments: fn NAME() { … }";
        let wanted = || WANTED.to_owned();
        let mut tokens = tokens.into_iter().peekable();
        let mut attributes = TokenStream::new();
        while let Some(hash) = tokens.next_if(|token| is(token, '#')) {
            let attribute = tokens.next().ok_or_else(wanted)?;
            if has_word(attribute.clone(), "should_panic") {
                return Err(
                    "#[husk::test] and #[should_panic] do not go together: the function is \
                            called twice, on the host and in the guest"
                        .to_owned(),
                );
            }
            attributes.extend([hash, attribute]);
        }
        // `pub` and the like mean nothing on a test.
        if tokens.by_ref().find(|token| token.to_string() == "fn").is_none() {
            return Err(wanted());
        }
        let name = tokens.next().ok_or_else(wanted)?.to_string();
        match tokens.next() {
            Some(TokenTree::Group(group))
                if group.delimiter() == Delimiter::Parenthesis && group.stream().is_empty() => {}
            _ => return Err(wanted()),
        }
        let mut rest: Vec<TokenTree> = tokens.collect();
        match rest.pop() {
            Some(TokenTree::Group(body)) if body.delimiter() == Delimiter::Brace => {
                let result = rest.into_iter().collect();
                Ok(Function { attributes, name, result, body: TokenTree::Group(body) })
            }
            _ => Err(wanted()),
        }
    }
}
