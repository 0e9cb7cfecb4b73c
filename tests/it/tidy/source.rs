//! A source file with what the rules examine: its module, its paths, its functions and their lengths.

use std::collections::HashMap;
use std::ops::Range;

use super::lexer::{Keep, Token, blank, blank_range, closing, tokens};

/// One file under `src/`, with its tests cut out.
#[derive(Debug)]
pub(super) struct SourceFile {
    /// Path from the repository's root, with slashes.
    pub(super) path: String,
    /// `["schema", "catalog"]` for `src/schema/catalog.rs`; `main` and `lib` for these two.
    pub(super) module: Vec<String>,
    /// The unchanged text of the file.
    pub(super) raw: String,
    /// The text with comments, strings and `#[cfg(test)]` items blanked.
    pub(super) code: String,
    /// The text with comments and `#[cfg(test)]` items blanked.
    pub(super) code_and_strings: String,
    /// Modules in other files that this one declares for tests only.
    pub(super) test_modules: Vec<Vec<String>>,
    test_spans: Vec<Range<usize>>,
}

/// A path in the code, resolved as far as its first segment allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// A path from the crate's root: `crate::pg::Lsn` is `["pg", "Lsn"]`.
    Internal(Vec<String>),
    /// A path of another crate, its name first: `["std", "time", "Instant"]`. A glob ends in `*`.
    External(Vec<String>),
}

/// A function with a body.
pub(super) struct Function {
    pub(super) name: String,
    pub(super) line: usize,
    /// Number of lines between the braces.
    pub(super) body_lines: usize,
}

impl SourceFile {
    pub(super) fn new(path: &str, raw: &str) -> Self {
        let mut file = Self {
            path: path.to_owned(),
            module: module_of(path),
            raw: raw.to_owned(),
            code: blank(raw, Keep::Code),
            code_and_strings: blank(raw, Keep::CodeAndStrings),
            test_modules: Vec::new(),
            test_spans: Vec::new(),
        };
        file.cut_tests();
        file
    }

    pub(super) fn line_of(&self, position: usize) -> usize {
        1 + self.raw[..position].matches('\n').count()
    }

    /// Returns the number of lines outside of test items.
    pub(super) fn lines_without_tests(&self) -> usize {
        let lines_of = |span: &Range<usize>| self.raw[span.clone()].lines().count();
        self.raw.lines().count() - self.test_spans.iter().map(lines_of).sum::<usize>()
    }

    /// Blanks every item under `#[cfg(test)]` (or `cfg(any(test, …))`) in both views.
    fn cut_tests(&mut self) {
        let code = self.code.clone();
        let tokens = tokens(&code);
        let mut index = 0;
        while index < tokens.len() {
            let Some(attribute_end) = test_attribute(&tokens, index) else {
                index += 1;
                continue;
            };
            let end = item_end(&tokens, attribute_end + 1);
            if let Some(name) = declared_module(&tokens[attribute_end + 1..=end]) {
                self.test_modules.push(self.child(name));
            }
            self.test_spans.push(tokens[index].0..tokens[end].0 + 1);
            index = end + 1;
        }
        for view in [&mut self.code, &mut self.code_and_strings] {
            let mut bytes = std::mem::take(view).into_bytes();
            for span in &self.test_spans {
                blank_range(&mut bytes, span.start, span.end);
            }
            *view = String::from_utf8(bytes).expect("blanks replace whole characters");
        }
    }

    /// Returns the module path for resolving `self` and `super`; `main` and `lib` are the crate's root.
    fn scope(&self) -> Vec<String> {
        match self.path.as_str() {
            "src/main.rs" | "src/lib.rs" => Vec::new(),
            _ => self.module.clone(),
        }
    }

    fn child(&self, name: &str) -> Vec<String> {
        let mut path = self.scope();
        path.push(name.to_owned());
        path
    }

    /// Returns every path of two or more segments with its position; `use` trees are expanded.
    pub(super) fn paths(&self) -> Vec<(usize, Path)> {
        let tokens = tokens(&self.code);
        let (uses, others) = split_uses(&tokens);
        let mut scopes =
            Scopes { file: self.scope(), inline: inline_modules(&tokens), names: HashMap::new() };
        for (_, name) in mod_declarations(&tokens) {
            scopes.names.insert(name.to_owned(), Path::Internal(self.child(name)));
        }
        let mut found = Vec::new();
        for UsedPath { position, segments, alias } in uses {
            let path = scopes.resolve(position, &segments);
            if let Some(name) = alias {
                scopes.names.insert(name, path.clone());
            }
            found.push((position, path));
        }
        for (position, segments) in others {
            found.push((position, scopes.resolve(position, &segments)));
        }
        found.sort_by_key(|(position, _)| *position);
        found
    }

    /// Returns the positions of attributes that allow a lint, in tests as well.
    pub(super) fn allow_attributes(&self) -> Vec<usize> {
        let code = blank(&self.raw, Keep::Code);
        let tokens = tokens(&code);
        let mut positions = Vec::new();
        for (index, &(position, token)) in tokens.iter().enumerate() {
            let open = match (token, tokens.get(index + 1), tokens.get(index + 2)) {
                (Token::Punct('#'), Some((_, Token::Punct('['))), _) => index + 1,
                (Token::Punct('#'), Some((_, Token::Punct('!'))), Some((_, Token::Punct('[')))) => index + 2,
                _ => continue,
            };
            let attribute = &tokens[open..closing(&tokens, open)];
            let is_allow = |pair: &[(usize, Token<'_>)]| {
                matches!(pair, [(_, Token::Word("allow")), (_, Token::Punct('('))])
            };
            if attribute.windows(2).any(is_allow) {
                positions.push(position);
            }
        }
        positions
    }

    pub(super) fn functions(&self) -> Vec<Function> {
        let tokens = tokens(&self.code);
        let mut functions = Vec::new();
        for (index, &(position, token)) in tokens.iter().enumerate() {
            let (Token::Word("fn"), Some((_, Token::Word(name)))) = (token, tokens.get(index + 1)) else {
                continue;
            };
            let Some(open) = body_of(&tokens, index) else { continue };
            let (first, last) =
                (self.line_of(tokens[open].0), self.line_of(tokens[closing(&tokens, open)].0));
            functions.push(Function {
                name: (*name).to_owned(),
                line: self.line_of(position),
                body_lines: (last - first).saturating_sub(1),
            });
        }
        functions
    }
}

fn module_of(path: &str) -> Vec<String> {
    let inner = path.strip_prefix("src/").unwrap_or(path).strip_suffix(".rs").unwrap_or(path);
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    inner.split('/').map(str::to_owned).collect()
}

/// Returns the last token of a test attribute that starts at `index`.
fn test_attribute(tokens: &[(usize, Token<'_>)], index: usize) -> Option<usize> {
    let [(_, Token::Punct('#')), (_, Token::Punct('[')), (_, Token::Word("cfg")), ..] = tokens[index..]
    else {
        return None;
    };
    let end = closing(tokens, index + 1);
    let has = |word| tokens[index..end].iter().any(|(_, token)| *token == Token::Word(word));
    (has("test") && !has("not")).then_some(end)
}

/// Returns the last token of the item at `start`: its closing brace or its semicolon. A field, variant
/// or arm ends at its comma instead.
fn item_end(tokens: &[(usize, Token<'_>)], start: usize) -> usize {
    const ITEMS: &[&str] = &[
        "pub",
        "fn",
        "mod",
        "use",
        "impl",
        "struct",
        "enum",
        "const",
        "static",
        "trait",
        "type",
        "async",
        "unsafe",
        "extern",
        "macro_rules",
        "let",
    ];
    let mut index = start;
    while let Some((_, Token::Punct('#'))) = tokens.get(index) {
        index = closing(tokens, index + 1) + 1;
    }
    let is_item = matches!(tokens.get(index), Some((_, Token::Word(word))) if ITEMS.contains(word));
    while let Some((_, token)) = tokens.get(index) {
        match token {
            Token::Punct('{') => return closing(tokens, index),
            Token::Punct('(' | '[') => index = closing(tokens, index),
            Token::Punct(';') => return index,
            Token::Punct(',') if !is_item => return index,
            _ => {}
        }
        index += 1;
    }
    tokens.len() - 1
}

/// Returns the name in `mod name;`.
fn declared_module<'a>(item: &[(usize, Token<'a>)]) -> Option<&'a str> {
    match item {
        [.., (_, Token::Word("mod")), (_, Token::Word(name)), (_, Token::Punct(';'))] => Some(name),
        _ => None,
    }
}

/// Returns the index of the brace that opens the body of the function whose `fn` is at `start`.
fn body_of(tokens: &[(usize, Token<'_>)], start: usize) -> Option<usize> {
    let mut index = start;
    loop {
        match tokens.get(index)?.1 {
            Token::Punct('{') => return Some(index),
            Token::Punct(';') => return None,
            Token::Punct('(' | '[') => index = closing(tokens, index),
            _ => {}
        }
        index += 1;
    }
}

fn mod_declarations<'a>(tokens: &[(usize, Token<'a>)]) -> Vec<(usize, &'a str)> {
    let mut names = Vec::new();
    for (index, pair) in tokens.windows(2).enumerate() {
        if let [(_, Token::Word("mod")), (_, Token::Word(name))] = pair {
            names.push((index, *name));
        }
    }
    names
}

/// Returns the modules with a body in this file and their ranges.
fn inline_modules(tokens: &[(usize, Token<'_>)]) -> Vec<(Range<usize>, String)> {
    let mut modules = Vec::new();
    for (index, name) in mod_declarations(tokens) {
        if let Some((start, Token::Punct('{'))) = tokens.get(index + 2) {
            let end = tokens[closing(tokens, index + 2)].0;
            modules.push((*start..end, name.to_owned()));
        }
    }
    modules
}

/// One leaf of a `use` tree.
struct UsedPath {
    position: usize,
    segments: Vec<String>,
    /// The name that it brings into scope.
    alias: Option<String>,
}

/// A path that is not in a `use`. One that starts with `::` has an empty first segment.
type PlainPath = (usize, Vec<String>);

/// Returns the leaves of all `use` declarations, and all other paths.
fn split_uses(tokens: &[(usize, Token<'_>)]) -> (Vec<UsedPath>, Vec<PlainPath>) {
    let (mut uses, mut others) = (Vec::new(), Vec::new());
    let mut index = 0;
    while index < tokens.len() {
        match (tokens[index].1, tokens.get(index + 1).map(|(_, token)| *token)) {
            // This excludes the `use<'a>` of a captured lifetime.
            (Token::Word("use"), Some(next)) if next != Token::Punct('<') => {
                index = use_tree(tokens, index + 1, &[], &mut uses);
            }
            (Token::Word(word), _) => {
                let (segments, next) = plain_path(tokens, index, word);
                if segments.len() > 1 {
                    others.push((tokens[index].0, segments));
                }
                index = next;
            }
            _ => index += 1,
        }
    }
    (uses, others)
}

/// Returns the path whose first word is at `start`, and the index after it.
fn plain_path(tokens: &[(usize, Token<'_>)], start: usize, first: &str) -> (Vec<String>, usize) {
    let mut segments = vec![first.to_owned()];
    if start > 0 && tokens[start - 1].1 == Token::PathSeparator {
        match start.checked_sub(2).map(|before| tokens[before].1) {
            // In `<T as Trait>::name`, the token before the separator is not a word.
            Some(Token::Punct('>')) => return (Vec::new(), start + 1),
            _ => segments.insert(0, String::new()),
        }
    }
    let mut index = start + 1;
    while let [(_, Token::PathSeparator), (_, Token::Word(word)), ..] = tokens[index..] {
        segments.push(word.to_owned());
        index += 2;
    }
    (segments, index)
}

/// Reads a `use` tree at `index` and returns the index after it.
fn use_tree(
    tokens: &[(usize, Token<'_>)],
    mut index: usize,
    prefix: &[String],
    uses: &mut Vec<UsedPath>,
) -> usize {
    let mut segments = prefix.to_vec();
    let position = tokens.get(index).map_or(0, |(position, _)| *position);
    while let Some((_, token)) = tokens.get(index) {
        match token {
            Token::Word("as") => {
                let alias = match tokens.get(index + 1) {
                    Some((_, Token::Word(name))) => Some((*name).to_owned()),
                    _ => None,
                };
                uses.push(UsedPath { position, segments, alias });
                return index + 2;
            }
            Token::Word("self") if !prefix.is_empty() && segments.len() == prefix.len() => {}
            Token::Word(word) => segments.push((*word).to_owned()),
            Token::Punct('*') => segments.push("*".to_owned()),
            Token::PathSeparator if segments.is_empty() => segments.push(String::new()),
            Token::PathSeparator => {}
            Token::Punct('{') => {
                index += 1;
                while !matches!(tokens.get(index), None | Some((_, Token::Punct('}')))) {
                    index = use_tree(tokens, index, &segments, uses);
                    if let Some((_, Token::Punct(','))) = tokens.get(index) {
                        index += 1;
                    }
                }
                return index + 1;
            }
            Token::Punct(_) => break,
        }
        index += 1;
    }
    let alias = segments.last().filter(|name| *name != "*").cloned();
    uses.push(UsedPath { position, segments, alias });
    // The semicolon of a whole declaration is passed over, but not the end of a branch.
    index + usize::from(prefix.is_empty())
}

/// The meaning of names in a file.
struct Scopes {
    file: Vec<String>,
    inline: Vec<(Range<usize>, String)>,
    /// Paths by the name that `mod` and `use` have brought in.
    names: HashMap<String, Path>,
}

impl Scopes {
    fn module_at(&self, position: usize) -> Vec<String> {
        let inner = self.inline.iter().filter(|(span, _)| span.contains(&position));
        self.file.iter().cloned().chain(inner.map(|(_, name)| name.clone())).collect()
    }

    fn resolve(&self, position: usize, segments: &[String]) -> Path {
        let (first, rest) = segments.split_first().expect("a path has a segment");
        match first.as_str() {
            "" => Path::External(rest.to_vec()),
            "crate" | "pgsluice" => Path::Internal(rest.to_vec()),
            "self" => Path::Internal([self.module_at(position), rest.to_vec()].concat()),
            "super" => {
                let mut module = self.module_at(position);
                let ups = segments.iter().take_while(|segment| *segment == "super").count();
                module.truncate(module.len().saturating_sub(ups));
                Path::Internal([module, segments[ups..].to_vec()].concat())
            }
            name => match self.names.get(name) {
                Some(Path::Internal(path)) => Path::Internal([path.clone(), rest.to_vec()].concat()),
                Some(Path::External(path)) => Path::External([path.clone(), rest.to_vec()].concat()),
                None => Path::External(segments.to_vec()),
            },
        }
    }
}
