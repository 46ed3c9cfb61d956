# Writes a C++ source that holds files: cmake -DOUTPUT=… -DROOT=… "-DFILES=a.html;b.js" -P EmbedFiles.cmake
# Served under its name: "/a.js"; "index.html" as "/" and "NAME.html" as "/NAME".
set(_types_html "text/html; charset=utf-8")
set(_types_js "text/javascript; charset=utf-8")
set(_types_css "text/css; charset=utf-8")
set(_types_svg "image/svg+xml")
set(_arrays)
set(_entries)
set(_n 0)
foreach(_file IN LISTS FILES)
  file(READ "${ROOT}/${_file}" _hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," _bytes "${_hex}")
  string(REGEX REPLACE ".*\\." "" _extension "${_file}")
  set(_type "${_types_${_extension}}")
  if(NOT _type)
    message(FATAL_ERROR "${_file}: EmbedFiles.cmake knows no content type of .${_extension}")
  endif()
  string(APPEND _arrays "constexpr unsigned char kFile${_n}[] = {${_bytes}};\n")
  set(_paths "/${_file}")
  if(_file STREQUAL "index.html")
    set(_paths "/")
  elseif(_extension STREQUAL "html")
    string(REGEX REPLACE "\\.html$" "" _stem "${_file}")
    set(_paths "/${_stem}")
  endif()
  foreach(_path IN LISTS _paths)
    string(APPEND _entries
      "      {\"${_path}\", \"${_type}\", {reinterpret_cast<const char*>(kFile${_n}), sizeof(kFile${_n})}},\n")
  endforeach()
  math(EXPR _n "${_n} + 1")
endforeach()
file(WRITE "${OUTPUT}.new" "// Made by cmake/EmbedFiles.cmake.
#include \"coordinator/web/assets.h\"
namespace rlhf::coordinator {
namespace {
${_arrays}}  // namespace
const std::vector<WebAsset>& WebAssets() {
  static const std::vector<WebAsset>* const assets = new std::vector<WebAsset>{
${_entries}  };
  return *assets;
}
}  // namespace rlhf::coordinator
")
file(RENAME "${OUTPUT}.new" "${OUTPUT}")
