"""Whatever goes wrong with the Python client, files of this machine included, is an RlhfError; needs no service."""
import asyncio
import concurrent.futures
import hashlib
import json
import pathlib
import tempfile
import unittest

import grpc

from rlhf.v1 import artifact_service_pb2_grpc, data_pb2
from rlhf_client import AsyncClient, Client, Context, RlhfError, load_context, load_spec
from rlhf_client._shared import manifest_of


class ErrorsTest(unittest.TestCase):
    def setUp(self):
        self._scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self._scratch.cleanup)
        self.dir = pathlib.Path(self._scratch.name)

    def write(self, name, content):
        path = self.dir / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return str(path)

    def refused(self, code, says, function, *arguments):
        with self.assertRaises(RlhfError) as caught:
            function(*arguments)
        self.assertIs(caught.exception.code, code, caught.exception)
        self.assertIn(says, caught.exception.message)
        return caught.exception.message

    def test_context_files(self):
        invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
        for content in ("{}", "[]", '{"address": 7}', '"text"'):
            self.refused(invalid, 'client.json: expected a JSON object with "address"', load_context, self.write("client.json", content))
        self.refused(invalid, "client.json: not JSON", load_context, self.write("client.json", "{address"))
        self.refused(invalid, "client.json:2: expected UTF-8, found the byte 0xe9", load_context, self.write("client.json", b'{"address":\n"caf\xe9"}'))
        self.refused(grpc.StatusCode.FAILED_PRECONDITION, "rlhfctl up", load_context, str(self.dir / "none.json"))
        for key in ("ca_file", "token_file"):
            self.refused(missing, "no such file: " + str(self.dir / "none"), load_context,
                         self.write("client.json", json.dumps({"address": "127.0.0.1:1", key: "none"})))
            self.refused(invalid, f"{key}: expected a text", load_context, self.write("client.json", json.dumps({"address": "127.0.0.1:1", key: 7})))

    def test_tokens_are_checked_and_never_shown(self):
        context = self.write("client.json", '{"address": "127.0.0.1:1", "token_file": "token"}')
        for content in ("s3cret token", "# mine\ns3cret", "s3cr\u00e9t", b"s3cr\xe9t"):
            self.write("token", content)
            self.assertNotIn("s3cr", self.refused(grpc.StatusCode.INVALID_ARGUMENT, "token", load_context, context))
        self.assertNotIn("s3cr", self.refused(grpc.StatusCode.INVALID_ARGUMENT, "token", lambda: Context(address="a:1", token="s3cr\u00e9t")))
        self.write("token", b"\xef\xbb\xbfrlhf_a_b\r\n")
        self.assertEqual(load_context(context).token, "rlhf_a_b")

    def test_job_files(self):
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        self.refused(grpc.StatusCode.NOT_FOUND, "no such file: ", load_spec, str(self.dir / "none.yaml"))
        for content, says in (("", "expected a mapping, found an empty file"), ("- a\n", "expected a mapping"), ("just text\n", "expected a mapping"),
                              ("name: [a\n", "job.yaml:2:1: not YAML: "), ("---\na: b\n---\nc: d\n", "not YAML: "),
                              (b"name: a\nlabels: {x: caf\xe9}\n", "job.yaml:2: expected UTF-8"), ("sft: 3\n", "job.yaml: "), ("nme: a\n", "nme")):
            self.refused(invalid, says, load_spec, self.write("job.yaml", content))

    def test_keys_that_are_there_twice_are_refused(self):
        for content, line in (("name: a\nname: b\n", 2), ("name: a\nsft:\n  model: m\n  data: d\n  model: n\n", 5), ("labels: {x: 1, x: 2}\n", 1)):
            self.refused(grpc.StatusCode.INVALID_ARGUMENT, f"job.yaml:{line}:", load_spec, self.write("job.yaml", content))
            self.refused(grpc.StatusCode.INVALID_ARGUMENT, "duplicate key", load_spec, self.write("job.yaml", content))
        self.assertEqual(load_spec(self.write("job.yaml", "name: a\nsft: {model: name, data: name}\n")).sft.model, "name")

    def test_folders_of_links(self):
        blobs, snapshot = self.dir / "blobs", self.dir / "snapshots" / "1"
        blobs.mkdir()
        (snapshot / ".cache").mkdir(parents=True)
        (snapshot / ".cache" / "download.lock").write_text("")
        (snapshot / "onnx").mkdir()
        for blob, link in (("1", "config.json"), ("2", "onnx/model.onnx"), ("3", ".gitattributes")):
            (blobs / blob).write_text(link)
            (snapshot / link).symlink_to(blobs / blob)
        files, request = manifest_of(str(snapshot))
        self.assertEqual([file.path for file in request.files], ["config.json", "onnx/model.onnx"])
        self.assertEqual([file.read_text() for file in files], ["config.json", "onnx/model.onnx"])
        (blobs / "1").unlink()
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, "was a download interrupted?", manifest_of, str(snapshot))
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(blobs)
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, f"a link to {blobs}, a folder; copy the folder", manifest_of, str(snapshot))

    def test_a_closed_client(self):
        client = Client(Context(address="127.0.0.1:1", insecure=True))
        client.close()
        for call in (client.list, lambda: client.get("job"), lambda: next(client.watch("job")), lambda: client.upload(__file__, "data"),
                     lambda: client.download("a", str(self.dir))):
            self.refused(grpc.StatusCode.FAILED_PRECONDITION, "the client is closed", call)

        async def asynchronous():
            other = AsyncClient(Context(address="127.0.0.1:1", insecure=True))
            await other.close()
            await other.list()

        self.refused(grpc.StatusCode.FAILED_PRECONDITION, "the client is closed", lambda: asyncio.run(asynchronous()))

    def test_a_channel_that_another_thread_or_a_fork_has_closed(self):
        client = Client(Context(address="127.0.0.1:1", insecure=True))
        self.addCleanup(client.close)
        client._channel.close()  # as gRPC's support of forks does in a child
        for call in (client.list, lambda: next(client.watch("job"))):
            self.refused(grpc.StatusCode.FAILED_PRECONDITION, "after a fork, make a client of its own in each process", call)

    def test_files_that_cannot_be_read_or_written(self):
        content = b"whole\n"

        class Artifacts(artifact_service_pb2_grpc.ArtifactServiceServicer):
            cut = False

            def GetArtifact(self, request, context):
                return data_pb2.Artifact(digest="sha256:0", files=[data_pb2.FileEntry(path="a/b", size=len(content), sha256=hashlib.sha256(content).hexdigest())])

            def Download(self, request, context):
                from rlhf.v1 import artifact_service_pb2
                yield artifact_service_pb2.DownloadChunk(data=content[:3] if self.cut else content)
                if self.cut:
                    context.abort(grpc.StatusCode.DATA_LOSS, "cut off")

        server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
        artifacts = Artifacts()
        artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(artifacts, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(server.stop, None)
        with Client(Context(address=f"127.0.0.1:{port}", insecure=True)) as client:
            self.refused(grpc.StatusCode.NOT_FOUND, "none", client.upload, str(self.dir / "none"), "data")
            in_the_way = self.write("file", "mine")
            self.refused(grpc.StatusCode.FAILED_PRECONDITION, in_the_way, client.download, "some", in_the_way)
            out = self.dir / "out"
            artifacts.cut = True
            self.refused(grpc.StatusCode.DATA_LOSS, "cut off", client.download, "some", str(out))
            self.assertEqual([p for p in out.rglob("*") if p.is_file()], [])
            artifacts.cut = False
            client.download("some", str(out))
            self.assertEqual([(p.name, p.read_bytes()) for p in out.rglob("*") if p.is_file()], [("b", content)])


if __name__ == "__main__":
    unittest.main()
