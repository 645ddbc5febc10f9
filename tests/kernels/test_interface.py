"""XLA's structures, as its header declares them."""

import pytest

from pseudocoreset.kernels.interface import Interface, of_jaxlib

HEADER = """
#define XLA_FFI_API_MAJOR 0
#define XLA_FFI_API_MINOR 7
typedef enum {
  Kind_A = 1,  // the only one
} Kind;
typedef uint32_t Bits;
typedef struct Inner {
  size_t struct_size;
  int major;  // of four bytes
  Bits bits;
  Kind kind;
} Inner;
struct Outer {
  Kind kind;

  const void* api;  // struct Outer { int nothing; };
  Inner inner;
  int64_t** last;
};
struct Table {
  Inner version;
  _XLA_FFI_API_STRUCT_FIELD(First);
  _XLA_FFI_API_STRUCT_FIELD(Second);
};
struct Strange {
  float number;
};
"""


def test_offsets_are_those_of_c():
    header = Interface(HEADER)
    assert header.version == (0, 7)
    inner = {"size_t struct_size": 0, "int major": 8, "Bits bits": 12, "Kind kind": 16}
    assert {member: header.offset("Inner", member) for member in header.members("Inner")} == inner
    outer = {"Kind kind": 0, "const void* api": 8, "Inner inner": 16, "int64_t** last": 40}
    assert {member: header.offset("Outer", member) for member in header.members("Outer")} == outer
    assert header.offset("Table", "Second* Second") == 32


def test_what_was_renamed_has_its_first_name():
    first = """
#define XLA_FFI_API_MAJOR 0
#define XLA_FFI_API_MINOR 3
typedef enum { XLA_FFI_Extension_Metadata = 1, } XLA_FFI_Extension_Type;
struct XLA_FFI_Extension_Base { size_t struct_size; XLA_FFI_Extension_Type type; };
struct XLA_FFI_CallFrame { XLA_FFI_Extension_Base* extension_start; XLA_FFI_ExecutionContext* ctx; int last; };
"""
    later = first.replace("MINOR 3", "MINOR 5").replace("Extension_Base", "InternalExtension")
    later = later.replace("XLA_FFI_Extension_Type", "XLA_FFI_InternalExtension_Type")
    later = later.replace("ExecutionContext", "InvokeContext")
    for name in ("XLA_FFI_Extension_Base", "XLA_FFI_CallFrame"):
        assert Interface(later).members(name) == Interface(first).members(name)
    assert Interface(later).offset("XLA_FFI_CallFrame", "int last") == 16


def test_those_of_this_jaxlib_are_the_known_ones():
    """Of all that the version 0 of the interface has had."""
    known = {
        ("XLA_FFI_CallFrame", "XLA_FFI_Extension_Base* extension_start"): 8,
        ("XLA_FFI_CallFrame", "const XLA_FFI_Api* api"): 16,
        ("XLA_FFI_CallFrame", "XLA_FFI_ExecutionContext* ctx"): 24,
        ("XLA_FFI_CallFrame", "XLA_FFI_Args args"): 40,
        ("XLA_FFI_CallFrame", "XLA_FFI_Rets rets"): 80,
        ("XLA_FFI_Args", "void** args"): 32,
        ("XLA_FFI_Rets", "void** rets"): 32,
        ("XLA_FFI_Buffer", "void* data"): 24,
        ("XLA_FFI_Buffer", "int64_t* dims"): 40,
        ("XLA_FFI_Extension_Base", "XLA_FFI_Extension_Type type"): 8,
        ("XLA_FFI_Metadata_Extension", "XLA_FFI_Metadata* metadata"): 24,
        ("XLA_FFI_Metadata", "XLA_FFI_Api_Version api_version"): 8,
        ("XLA_FFI_Api_Version", "int major_version"): 16,
        ("XLA_FFI_Api_Version", "int minor_version"): 20,
        ("XLA_FFI_Api", "XLA_FFI_Error_Destroy* XLA_FFI_Error_Destroy"): 64,
        ("XLA_FFI_Api", "XLA_FFI_ThreadPool_Schedule* XLA_FFI_ThreadPool_Schedule"): 136,
        ("XLA_FFI_ThreadPool_Schedule_Args", "void* data"): 32,
        ("XLA_FFI_Error_Destroy_Args", "XLA_FFI_Error* error"): 16,
    }
    assert {place: of_jaxlib().offset(*place) for place in known} == known


@pytest.mark.parametrize(
    ("structure", "member", "message"),
    [
        ("Outer", "void* api", "no member 'void\\* api' in Outer"),
        ("Outer", "const void* other", "no member 'const void\\* other' in Outer"),
        ("Nothing", "int a", "declares no structure Nothing"),
        ("Strange", "float number", "declares no structure float"),
    ],
)
def test_what_is_not_declared_so_is_refused(structure, member, message):
    with pytest.raises(LookupError, match=message):
        Interface(HEADER).offset(structure, member)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER.replace("MAJOR 0", "MAJOR 1"), "has version 1"),
        ("int main() {}", "says nothing of XLA_FFI_API_MAJOR"),
    ],
)
def test_a_header_of_another_interface_is_refused(header, message):
    with pytest.raises(LookupError, match=message):
        Interface(header)
