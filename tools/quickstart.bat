@echo off
rem What tools/quickstart.sh does elsewhere, on Windows: from a fresh checkout to recommendations.
rem Builds, trains on data\demo, evaluates, recommends ten titles to one viewer, and writes a page
rem that shows how the model comes to its answers; a few minutes. With "text": a classifier of texts, trained on data\demo_text.
rem
rem   tools\quickstart.bat [text] [OUTPUT]   (default: output\demo, or output\demo_text)
rem
rem BERT4REC_PROGRAMS: a folder with the programs (default: build; built there if they are missing).
setlocal
cd /d "%~dp0.."
set "what=items"
if /i "%~1" == "text" set "what=text" & shift
set "output=%~1"
if not defined output if %what% == text (set "output=output\demo_text") else set "output=output\demo"
set "programs=%BERT4REC_PROGRAMS%"
if not defined programs set "programs=build"
if exist "%programs%\train_model.exe" if exist "%programs%\explain.exe" goto built

echo.
echo == looking for compiler and libraries
for %%p in (g++.exe cmake.exe ninja.exe) do if "%%~$PATH:p" == "" call :missing %%p
if defined missing goto help

echo.
echo == building (%programs%)
cmake -S . -B "%programs%" -G Ninja -DCMAKE_CXX_COMPILER=g++
if errorlevel 1 goto help
cmake --build "%programs%"
if errorlevel 1 goto failed

:built
if %what% == text goto text
echo.
echo == training on data/demo
"%programs%\train_model" --data data/demo --output "%output%" --overwrite ^
  --objective causal --hidden-size 64 --num-heads 2 --max-seq-len 64 --dropout 0.2 ^
  --epochs 60 --batch-size 16 --lr 0.002 --schedule linear --warmup-steps 100 ^
  --split last --best-by top10
if errorlevel 1 goto failed

echo.
echo == evaluating on the last title of each viewer, which training never saw
"%programs%\evaluate_model" --data data/demo --model "%output%/models"
if errorlevel 1 goto failed

set viewer=demo_0007
echo.
echo == ten titles for the viewer %viewer%
"%programs%\recommend" --data data/demo --model "%output%/models" --user %viewer% --count 10
if errorlevel 1 goto failed

echo.
echo == one page that follows a viewer through that model, forward and backward
"%programs%\explain" --data data/demo --model "%output%/models" --user demo_0014 ^
  --output "%output%/explain.html"
if errorlevel 1 goto failed

echo.
echo == where things are
echo explained    %output%\explain.html: open it in a browser first
echo models       %output%\models (best_model.safetensors, item_mappings.json)
echo checkpoints  %output%\checkpoints
echo pictures     %output%\plots\*.png (and training_metrics.json)
echo log          %output%\logs\training.log
echo your own data: %programs%\import_interactions --help
exit /b 0

:text
echo.
echo == training on data/demo_text: masked text first, then labels
"%programs%\train_classifier" --texts data/demo_text/train.tsv --dev data/demo_text/dev.tsv ^
  --test data/demo_text/test.tsv --vocab data/demo_text/vocab.txt --output "%output%" --overwrite ^
  --hidden-size 64 --num-heads 2 --max-length 48 --initializer-range 0.08 ^
  --pretrain 8 --pretrain-lr 0.003 --epochs 12 --batch-size 32 --lr 0.002 --warmup-steps 150
if errorlevel 1 goto failed

echo.
echo == ten texts that it has not seen
"%programs%\predict_text" --models "%output%/models" --input data/demo_text/examples.txt
if errorlevel 1 goto failed

echo.
echo == where things are
echo models       %output%\models (best_model.safetensors, labels.json, vocab.txt)
echo pictures     %output%\plots\*.png (and training_metrics.json)
echo figures      %output%\evaluation.json
echo your own texts: %programs%\train_classifier --help
exit /b 0

:missing
echo missing: %1
set missing=%1
exit /b 0

:help
echo Please install MSYS2 (winget install MSYS2.MSYS2, or www.msys2.org), type in its UCRT64 window
echo   pacman -S --needed mingw-w64-ucrt-x86_64-gcc mingw-w64-ucrt-x86_64-cmake
echo   pacman -S --needed mingw-w64-ucrt-x86_64-ninja mingw-w64-ucrt-x86_64-stb
echo put C:\msys64\ucrt64\bin on the PATH, and run this again.
exit /b 1

:failed
exit /b %errorlevel%
