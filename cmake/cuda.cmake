# SPDX-License-Identifier: Apache-2.0
#
# What CMakeLists.txt asks about nvcc, torch and GPUs. Needs MDFT_NVCC and MDFT_TORCH_ROOT.

# nvcc takes a list apart at commas, reads quotes and backslashes, and hands the rest to a shell:
# what shall come out as it is must be escaped for both.
function(mdft_nvcc_words text result)
  string(REGEX REPLACE "([^A-Za-z0-9_@%+=:,./-])" "\\\\\\1" for_shell "${text}")
  string(REGEX REPLACE "([\\,'\"])" "\\\\\\1" for_nvcc "${for_shell}")
  set(${result} "${for_nvcc}" PARENT_SCOPE)
endfunction()

# Folders of headers, as seen from the build folder, where the compiler runs, if they lie in the
# checkout: no escape brings a comma or an apostrophe of its name through nvcc's -I.
function(mdft_nvcc_includes target option)
  foreach(folder ${ARGN})
    string(FIND "${folder}" "${CMAKE_SOURCE_DIR}/" at)
    if(at EQUAL 0)
      file(RELATIVE_PATH folder "${CMAKE_BINARY_DIR}" "${folder}")
    endif()
    target_compile_options(${target} PRIVATE "SHELL:${option} \"${folder}\"")
  endforeach()
endfunction()

# Why the CUDA library cannot be built or would not run; empty: it can.
function(mdft_why_no_cuda result)
  set(why "")
  file(STRINGS "${MDFT_TORCH_ROOT}/version.py" line REGEX "^cuda")
  string(REGEX MATCH "([0-9]+)\\.[0-9]+" torch_cuda "${line}")
  set(torch_major "${CMAKE_MATCH_1}")
  if(NOT MDFT_NVCC)
    set(why "needs nvcc on the PATH, or CUDA_HOME")
  elseif(NOT torch_cuda)
    set(why "this torch has no CUDA")
  else()
    execute_process(COMMAND "${MDFT_NVCC}" --version OUTPUT_VARIABLE said ERROR_QUIET)
    string(REGEX MATCH "release ([0-9]+)\\.[0-9]+" release "${said}")
    if(NOT CMAKE_MATCH_1 STREQUAL torch_major)
      string(REPLACE "release " "" release "${release}")
      set(why "nvcc must be of CUDA ${torch_major} as torch is (${torch_cuda}), got ${release}")
    endif()
  endif()
  set(${result} "${why}" PARENT_SCOPE)
endfunction()

# The GPUs to build for. Of a machine with GPUs: these. A development build without: what the gates
# on machine code read. Else what people have, 7.5 (T4) to 12.0. The last one also as PTX, from which
# the driver makes code for newer ones.
function(mdft_choose_architectures result)
  execute_process(COMMAND "${MDFT_NVCC}" --list-gpu-code OUTPUT_VARIABLE known ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+" known "${known}")
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE here RESULT_VARIABLE failed ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" here "${here}")
  list(TRANSFORM here REPLACE "\\." "")
  list(REMOVE_DUPLICATES here)
  list(SORT here COMPARE NATURAL)
  set(unknown ${here})
  if(known)
    list(REMOVE_ITEM unknown ${known})
  endif()
  if(here AND NOT failed AND NOT unknown)
    set(chosen ${here})
  elseif(MDFT_BUILD_EMULATED)
    set(chosen 90a 80)
  else()
    set(chosen)
    foreach(one 75 80 86 89 90 100 120)
      if(one IN_LIST known)
        list(APPEND chosen ${one})
      endif()
    endforeach()
  endif()
  list(POP_BACK chosen newest)
  list(TRANSFORM chosen APPEND "-real")
  list(APPEND chosen ${newest})  # without a suffix: code and PTX
  set(${result} "${chosen}" PARENT_SCOPE)
endfunction()
