# The CUDA backend on emulated GPUs; included by tests/CMakeLists.txt.
#
# The sources of model/cuda and dist/comm_nccl.c, compiled by the host's compiler against tests/gpu_emulation, as
# plug-ins beside copies of the programs. The real plug-ins are beside the program itself: what runs in this folder
# computes on emulated GPUs, and nothing outside it ever does.
set(CMAKE_CXX_STANDARD 17)
set(EMULATED ${CMAKE_CURRENT_BINARY_DIR}/emulated)
file(GLOB EMULATION_SOURCES CONFIGURE_DEPENDS gpu_emulation/*.cpp)
file(GLOB EMULATED_SOURCES CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/model/cuda/*.c ${PROJECT_SOURCE_DIR}/model/cuda/*.cu)
file(GLOB EMULATED_KERNELS ${PROJECT_SOURCE_DIR}/model/cuda/*.cu)
set_source_files_properties(${EMULATED_KERNELS} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")

add_library(gpu_emulation SHARED ${EMULATION_SOURCES})
target_include_directories(gpu_emulation PUBLIC gpu_emulation/include ${PROJECT_SOURCE_DIR})
target_compile_definitions(gpu_emulation PUBLIC LORASHARD_GPU_EMULATION)
target_link_libraries(gpu_emulation PRIVATE DNNL::dnnl Threads::Threads rt)
target_link_options(gpu_emulation PRIVATE -Wl,-z,nodelete) # it has a thread: dlclose must leave it
# With the processor's own instructions fmaf is one of them.
target_compile_options(gpu_emulation PUBLIC -Wno-unknown-pragmas -Wno-unused-function -O2 -march=${LORASHARD_MARCH})
add_library(emulated_cuda MODULE ${EMULATED_SOURCES})
# Padding in structs that kernels are given is 0: the emulation looks for addresses in them.
target_compile_options(emulated_cuda PRIVATE -ftrivial-auto-var-init=zero)
add_library(emulated_nccl MODULE ${PROJECT_SOURCE_DIR}/dist/comm_nccl.c)
foreach(kind cuda nccl)
  target_link_libraries(emulated_${kind} PRIVATE gpu_emulation lorashard_base)
  set_target_properties(emulated_${kind} PROPERTIES OUTPUT_NAME lorashard_${kind} LIBRARY_OUTPUT_DIRECTORY ${EMULATED})
endforeach()

# A copy of a program in the folder of the emulated plug-ins.
set(EMULATED_PROGRAMS)
function(add_emulated_program target)
  add_custom_command(OUTPUT ${EMULATED}/${target} DEPENDS ${target}
                     COMMAND ln -f $<TARGET_FILE:${target}> ${EMULATED}/${target} VERBATIM)
  set(EMULATED_PROGRAMS ${EMULATED_PROGRAMS} ${EMULATED}/${target} PARENT_SCOPE)
endfunction()

# The emulation's own tests: correct programs pass, each fault it looks for is found.
set_source_files_properties(gpu_emulation/test_emulation.cu PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
add_executable(test_emulation gpu_emulation/test_emulation.cu)
add_executable(test_emulation_nccl gpu_emulation/test_emulation_nccl.c)
target_link_libraries(test_emulation PRIVATE gpu_emulation)
target_link_libraries(test_emulation_nccl PRIVATE gpu_emulation MPI::MPI_C)
add_test(NAME emulation.faults COMMAND test_emulation)
add_test(NAME emulation.nccl COMMAND ${MPIEXEC_EXECUTABLE} ${MPIRUN_FLAGS} -n 2 $<TARGET_FILE:test_emulation_nccl>)
set_tests_properties(emulation.faults emulation.nccl PROPERTIES LABELS emulated TIMEOUT 120
                     ENVIRONMENT "${MPI_ENVIRONMENT};${MPI_SANITIZER_ENVIRONMENT}")

# Emulated threads are slow: fewer steps of the curves.
set(EMULATED_ENVIRONMENT LORASHARD_TEST_DEVICE=cuda LORASHARD_TEST_STEPS=4)
# Tests of operations, and of the whole model over ranks.
foreach(name activation attention attention_plain device linear lowrank norm optim rotary rows views xent)
  add_emulated_program(test_model_${name})
  list(APPEND EMULATED_OPERATIONS ${EMULATED}/test_model_${name})
  add_test(NAME emulated.model.${name} COMMAND ${EMULATED}/test_model_${name})
  set_tests_properties(emulated.model.${name} PROPERTIES LABELS emulated TIMEOUT 300
                       ENVIRONMENT "${SANITIZER_ENVIRONMENT};${EMULATED_ENVIRONMENT}")
endforeach()
if(LORASHARD_SANITIZE) # all kernels and head sizes, in less time
  set_property(TEST emulated.model.attention APPEND PROPERTY ENVIRONMENT LORASHARD_TEST_ONLY=test_sha*)
endif()
# "NAME RANKS...": what one layout less would not see runs on fewer.
foreach(line "golden 2 4" "replicas 2" "accumulation 2" "uneven 2 4" "gradient 2" "comm 2 3" "packing 2" "sequence 2"
             "layouts 4" "decode 2" "bytes_read 2" "allocations 2" "quantised_base 2")
  separate_arguments(counts UNIX_COMMAND "${line}")
  list(POP_FRONT counts name)
  add_emulated_program(test_mpi_${name})
  foreach(ranks ${counts})
    add_mpi_test(emulated.mpi.${name}.${ranks} ${EMULATED}/test_mpi_${name} ${ranks} 600 LABELS emulated
                 ENVIRONMENT ${EMULATED_ENVIRONMENT})
  endforeach()
endforeach()
add_emulated_program(lorashard)
add_emulated_program(bench_ops)
foreach(compute bf16 f32)
  add_test(NAME emulated.bench_ops.${compute} COMMAND ${EMULATED}/bench_ops --device cuda --tiny --once --dtype ${compute})
  set_tests_properties(emulated.bench_ops.${compute} PROPERTIES LABELS emulated TIMEOUT 300
                       ENVIRONMENT "${SANITIZER_ENVIRONMENT}")
endforeach()
add_custom_target(emulated_operations DEPENDS ${EMULATED_OPERATIONS} ${EMULATED}/bench_ops)
add_dependencies(emulated_operations emulated_cuda emulated_nccl test_emulation test_emulation_nccl)
add_dependencies(unit_tests emulated_operations)
add_custom_target(emulated_programs ALL DEPENDS ${EMULATED_PROGRAMS} emulated_cuda emulated_nccl)
