# Windows programs from Linux, and their tests under Wine:
#   apt-get install --no-install-recommends g++-mingw-w64-x86-64-posix wine wine64 libstb-dev
#   cmake -S . -B build/windows -DCMAKE_TOOLCHAIN_FILE=tests/toolchains/mingw.cmake \
#     -DBERT4REC_TESTS=ON
#   cmake --build build/windows && (cd build/windows && ctest --output-on-failure)
# (-posix: the variant whose std::thread and std::mutex work.)
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
set(CMAKE_CROSSCOMPILING_EMULATOR ${CMAKE_CURRENT_LIST_DIR}/wine.sh)

set(CMAKE_FIND_ROOT_PATH /usr/x86_64-w64-mingw32)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
# A header alone serves every system, so that of this one will do.
find_path(STB_FOLDER stb_image_write.h PATHS /usr/include/stb /usr/local/include/stb
          NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
