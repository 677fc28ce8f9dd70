//! Reads Python pickles without Python: an interpreter of the opcodes of protocols 2 to 5 that builds opaque objects
//! only. No class is looked up and no function is called; `REDUCE` only records the call.
//!
//! Opcodes are those of CPython's `Lib/pickletools.py`. Values are in one arena and refer to each other by index, so
//! shared and cyclic objects need no special care, and dropping them cannot overflow the stack.

use std::collections::HashMap;

/// Index of a value in its [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ref(u32);

/// A value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Tuple(Vec<Ref>),
    /// Lists and sets.
    List(Vec<Ref>),
    Dict(Vec<(Ref, Ref)>),
    /// A class or function, by name.
    Global {
        module: String,
        name: String,
    },
    /// The object that `REDUCE`, `NEWOBJ` and `BUILD` would create.
    Object(Object),
    /// A reference to something outside the pickle; in torch's files a storage.
    Persistent(Ref),
}

/// An object that was not created, but recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// The class or function that would be called.
    pub class: Ref,
    /// The arguments of the call.
    pub arguments: Ref,
    /// The argument of `BUILD`, usually the object's attributes.
    pub state: Option<Ref>,
    /// Items set afterwards, as in an OrderedDict.
    pub items: Vec<(Ref, Ref)>,
    /// Elements appended afterwards.
    pub elements: Vec<Ref>,
}

/// The values of a pickle.
#[derive(Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    root: Ref,
}

/// Most values of a pickle; the largest YOLO has about 60,000.
const NODE_LIMIT: usize = 4_000_000;

type PickleResult<T> = Result<T, String>;

impl Pickle {
    /// Interprets a whole pickle.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut machine = Machine { rest: bytes, length: bytes.len(), ..Machine::default() };
        let root = loop {
            let at = machine.length - machine.rest.len();
            match machine.step().map_err(|message| format!("pickle, byte {at}: {message}"))? {
                Some(root) => break root,
                None if machine.nodes.len() > NODE_LIMIT => {
                    return Err(format!("pickle, byte {at}: more than {NODE_LIMIT} values"));
                }
                None => {}
            }
        };
        Ok(Self { nodes: machine.nodes, root })
    }

    /// The outermost value.
    pub fn root(&self) -> Ref {
        self.root
    }

    /// The value at an index.
    pub fn node(&self, at: Ref) -> &Node {
        usize::try_from(at.0).ok().and_then(|at| self.nodes.get(at)).unwrap_or(&Node::None)
    }
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    length: usize,
    nodes: Vec<Node>,
    stack: Vec<Ref>,
    /// Heights of the stack at each `MARK`.
    marks: Vec<usize>,
    memo: HashMap<u32, Ref>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, count: usize) -> PickleResult<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("truncated")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> PickleResult<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "truncated".to_owned())
    }

    fn u8(&mut self) -> PickleResult<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> PickleResult<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn sized(&mut self, length: u64) -> PickleResult<&'a [u8]> {
        self.take(usize::try_from(length).map_err(|_| "a length is out of range")?)
    }

    fn line(&mut self) -> PickleResult<String> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or("truncated")?;
        let line = text(self.take(end)?)?;
        self.take(1)?;
        Ok(line)
    }

    fn push(&mut self, node: Node) -> PickleResult<()> {
        let number = u32::try_from(self.nodes.len()).map_err(|_| "too many values")?;
        self.nodes.push(node);
        self.stack.push(Ref(number));
        Ok(())
    }

    fn pop(&mut self) -> PickleResult<Ref> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("the stack is empty".to_owned());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".to_owned())
    }

    fn top(&self) -> PickleResult<Ref> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".to_owned())
    }

    fn pop_mark(&mut self) -> PickleResult<Vec<Ref>> {
        let height = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.split_off(height))
    }

    fn node(&mut self, at: Ref) -> PickleResult<&mut Node> {
        let index = usize::try_from(at.0).map_err(|_| "no such value")?;
        self.nodes.get_mut(index).ok_or_else(|| "no such value".to_owned())
    }

    fn get(&mut self, index: u32) -> PickleResult<()> {
        let found = self.memo.get(&index).copied().ok_or_else(|| format!("memo {index} was never put"))?;
        self.stack.push(found);
        Ok(())
    }

    fn put(&mut self, index: u32) -> PickleResult<()> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn tuple(&mut self, count: usize) -> PickleResult<()> {
        let mut items = (0..count).map(|_| self.pop()).collect::<PickleResult<Vec<Ref>>>()?;
        items.reverse();
        self.push(Node::Tuple(items))
    }

    fn object(&mut self) -> PickleResult<()> {
        let (arguments, class) = (self.pop()?, self.pop()?);
        self.push(Node::Object(Object { class, arguments, state: None, items: Vec::new(), elements: Vec::new() }))
    }

    fn append(&mut self, items: Vec<Ref>) -> PickleResult<()> {
        let target = self.top()?;
        match self.node(target)? {
            Node::List(list) => list.extend(items),
            Node::Object(object) => object.elements.extend(items),
            _ => return Err("appends to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Ref>) -> PickleResult<()> {
        if !items.len().is_multiple_of(2) {
            return Err("a key without a value".to_owned());
        }
        let pairs = items.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        let target = self.top()?;
        match self.node(target)? {
            Node::Dict(dict) => dict.extend(pairs),
            Node::Object(object) => object.items.extend(pairs),
            _ => return Err("sets items of what is no dict".to_owned()),
        }
        Ok(())
    }

    /// Interprets one opcode; returns the root at `STOP`.
    fn step(&mut self) -> PickleResult<Option<Ref>> {
        let opcode = self.u8()?;
        match opcode {
            b'.' => return self.pop().map(Some),
            0x80 => match self.u8()? {
                2..=5 => {}
                other => return Err(format!("protocol {other} is not supported")),
            },
            0x95 => drop(self.take(8)?), // FRAME: a hint
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'q' => {
                let index = self.u8()?;
                self.put(u32::from(index))?;
            }
            b'r' => {
                let index = self.u32()?;
                self.put(index)?;
            }
            0x94 => self.put(u32::try_from(self.memo.len()).map_err(|_| "too many memos")?)?,
            b'h' => {
                let index = self.u8()?;
                self.get(u32::from(index))?;
            }
            b'j' => {
                let index = self.u32()?;
                self.get(index)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(items)?;
            }
            b'b' => {
                let (state, target) = (self.pop()?, self.top()?);
                match self.node(target)? {
                    Node::Object(object) => object.state = Some(state),
                    _ => return Err("builds what is no object".to_owned()),
                }
            }
            other => return self.value(other).map(|()| None),
        }
        Ok(None)
    }

    /// The value of an opcode that is followed by its length in bytes.
    fn counted(&mut self, opcode: u8) -> PickleResult<Node> {
        let length = match opcode {
            0x8a | 0x8c | b'U' | b'C' => u64::from(self.u8()?),
            0x8b | b'X' | b'T' | b'B' => u64::from(self.u32()?),
            _ => u64::from_le_bytes(self.array()?),
        };
        let bytes = self.sized(length)?;
        Ok(match opcode {
            0x8a | 0x8b => long(bytes),
            b'X' | b'T' | 0x8c | b'U' | 0x8d => Node::Text(text(bytes)?),
            _ => Node::Bytes(bytes.to_vec()),
        })
    }

    /// Interprets the opcodes that push a value.
    fn value(&mut self, opcode: u8) -> PickleResult<()> {
        let node = match opcode {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'K' => Node::Int(i64::from(self.u8()?)),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.array()?))),
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            0x8a | 0x8b | b'X' | b'T' | 0x8c | b'U' | 0x8d | b'C' | b'B' | 0x8e | 0x96 => self.counted(opcode)?,
            b')' => Node::Tuple(Vec::new()),
            b']' | 0x8f => Node::List(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            b't' => Node::Tuple(self.pop_mark()?),
            b'l' | 0x91 => Node::List(self.pop_mark()?),
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Node::Dict(Vec::new()))?;
                return self.set(items);
            }
            0x85..=0x87 => return self.tuple(usize::from(opcode - 0x84)),
            b'c' => Node::Global { module: self.line()?, name: self.line()? },
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.node(module)?.clone(), self.node(name)?.clone()) {
                    (Node::Text(module), Node::Text(name)) => Node::Global { module, name },
                    _ => return Err("a class without a name".to_owned()),
                }
            }
            b'R' | 0x81 => return self.object(),
            0x92 => {
                // NEWOBJ_EX: keyword arguments are not looked at.
                self.pop()?;
                return self.object();
            }
            b'Q' => {
                let id = self.pop()?;
                Node::Persistent(id)
            }
            other => return Err(format!("opcode 0x{other:02x} is not supported")),
        };
        self.push(node)
    }
}

fn text(bytes: &[u8]) -> PickleResult<String> {
    // surrogatepass in Python; no name we look for has any.
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// A little-endian two's complement integer; one of more than 64 bits is only ever an identifier.
fn long(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Bytes(bytes.to_vec());
    }
    let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
    let mut wide = [fill; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exploit_is_a_note_of_it() {
        // os.system("true") as `__reduce__` writes it.
        let pickle = Pickle::parse(b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03.").unwrap();
        let Node::Object(object) = pickle.node(pickle.root()) else { panic!("{pickle:?}") };
        let global = Node::Global { module: "os".to_owned(), name: "system".to_owned() };
        assert_eq!(pickle.node(object.class), &global);
    }

    #[test]
    fn values_of_every_kind() {
        let parse = |bytes: &[u8]| {
            let pickle = Pickle::parse(bytes)?;
            Ok::<Node, String>(pickle.node(pickle.root()).clone())
        };
        assert_eq!(parse(b"\x80\x02K\x07.").unwrap(), Node::Int(7));
        assert_eq!(parse(b"\x80\x02J\xfe\xff\xff\xff.").unwrap(), Node::Int(-2));
        assert_eq!(parse(b"\x80\x02\x8a\x02\x00\xff.").unwrap(), Node::Int(-256));
        assert_eq!(parse(b"\x80\x04\x8c\x02hi\x94.").unwrap(), Node::Text("hi".to_owned()));
        assert_eq!(parse(b"\x80\x02G\x40\x09\x21\xfb\x54\x44\x2d\x18.").unwrap(), Node::Float(std::f64::consts::PI));
        // {"a": [1, 2]}, with a memo.
        let Node::Dict(items) = parse(b"\x80\x02}q\x00X\x01\x00\x00\x00a]q\x01(K\x01K\x02es.").unwrap() else {
            panic!()
        };
        assert_eq!(items.len(), 1);
        // A list in itself.
        assert!(matches!(parse(b"\x80\x02]q\x00h\x00a.").unwrap(), Node::List(items) if items.len() == 1));
    }

    #[test]
    fn nonsense_is_told_where() {
        for (bytes, part) in [
            (&b"\x80\x02"[..], "truncated"),
            (b"\x80\x09.", "protocol 9"),
            (b"\x80\x02.", "the stack is empty"),
            (b"\x80\x02h\x07.", "memo 7"),
            (b"\x80\x02K\x01K\x02a.", "no list"),
            (b"\x80\x02](K\x01K\x02u.", "no dict"),
            (b"\x80\x02t.", "no mark"),
            (b"\x80\x02X\xff\xff\xff\xffab.", "truncated"),
            (b"\x80\x02K\x01}b.", "no object"),
            (b"\x80\x02\x82\x01.", "opcode 0x82"),
            // An item below the mark is not the inner list's to take.
            (b"\x80\x02K\x01(0.", "the stack is empty"),
        ] {
            let error = Pickle::parse(bytes).unwrap_err();
            assert!(error.contains(part) && error.contains("byte"), "{error} for {bytes:?}");
        }
    }
}
