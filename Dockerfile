# certood for CPU:  docker build --tag certood .  and  docker run --rm --volume "$PWD:/work" certood demo
FROM python:3.12-slim
# The wheels of PyTorch's own index for CPU alone; the default ones bring CUDA and are far larger.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision
COPY . /source
RUN pip install --no-cache-dir "/source[onnx,pandas]" && rm -r /source
RUN useradd --create-home certood && mkdir /work && chown certood /work
USER certood
WORKDIR /work
ENTRYPOINT ["certood"]
CMD ["--help"]
