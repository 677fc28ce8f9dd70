"""llama.cpp's tokenizer, as the wheel `xllamacpp` ships it compiled, through its C interface (llama.h)."""

import ctypes
import glob
import os

import xllamacpp


class Parameters(ctypes.Structure):
    # llama_model_params is shorter: it goes by value, and what is beyond it is not looked at.
    _fields_ = [("bytes", ctypes.c_uint8 * 320)]


# Offset of `vocab_only` in llama_model_params of llama.cpp b11549; the field after it, use_extra_bufts, is 1 by default.
VOCAB_ONLY = 72

library = ctypes.CDLL(glob.glob(os.path.dirname(xllamacpp.__file__) + "/*.so")[0])
library.llama_model_default_params.restype = Parameters
library.llama_model_load_from_file.restype = ctypes.c_void_p
library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Parameters]
library.llama_model_get_vocab.restype = ctypes.c_void_p
library.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
library.llama_model_free.argtypes = [ctypes.c_void_p]
library.llama_vocab_get_add_bos.argtypes = [ctypes.c_void_p]
library.llama_vocab_get_add_bos.restype = ctypes.c_bool
library.llama_tokenize.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32,
                                   ctypes.c_bool, ctypes.c_bool]
LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
said = []
quiet = LOG(lambda level, text, data: said.append(text.decode(errors="replace")) if level in (3, 4) else None)
library.llama_log_set(quiet, None)
library.llama_backend_init()


class Vocabulary:
    """The vocabulary of a GGUF file."""

    def __init__(self, path):
        parameters = library.llama_model_default_params()
        assert parameters.bytes[VOCAB_ONLY] == 0 and parameters.bytes[VOCAB_ONLY + 2] == 1, "another layout"
        parameters.bytes[VOCAB_ONLY] = 1
        said.clear()
        self.model = library.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise ValueError("".join(said))
        self.vocab = library.llama_model_get_vocab(self.model)
        self.adds_bos = library.llama_vocab_get_add_bos(self.vocab)

    def ids(self, text, special=False, around=False):
        data = text.encode()
        room = len(data) + 16
        tokens = (ctypes.c_int32 * room)()
        count = library.llama_tokenize(self.vocab, data, len(data), tokens, room, around, special)
        assert count >= 0
        return list(tokens[:count])

    def __del__(self):
        if getattr(self, "model", None):
            library.llama_model_free(self.model)
