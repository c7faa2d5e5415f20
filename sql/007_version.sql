-- The number and the hash of the schema: 010_guard.sql compares them with the database's, 090_version.sql records them.
--
-- The number rises by one with each release that changes the schema, together with a new file sql/upgrade/NUMBER.sql.
-- The hash is the SHA-256 of all files of the schema. `make schema-hash` appends it here after each change of a file.
-- The earlier hashes stay: a database with one of them is older than these files, one with an unknown hash is newer.
SET LOCAL feature_platform.schema_number = '3';
SET LOCAL feature_platform.schema_hashes = '
c8433f99cf3918651fd59ea4b5378d9d3eaed43a5b94b35661afce41a1a55719
eff1c8f6815de133ea80c008f29f8b82cb71db3349e2afff4c59185bb3ea4d87
4d532498d508198475d82a86a7de5dda74f5815e3576f30129ec28947ea27da3
631336db8b93efcb69e25bb65ef9d3e9a72baf0fc9a54bcf789c1e2519842a28
8166c265ea7b22d3af742b8a88bc6a808e2ffba5c99335bd257a9c999e45fd90
9700ac81aac3a3944c9ae80d0434b3d9e7ccc645997f1c23b1952a0ab0511c50
8e11d2976daaa960e27d7079168251e601a91c79813f4a21d0c671479c36fa57
35801082610d5b89a26e70cfa65e58d02e8f7e3e16af0f5fc78c54932af79fb4
6e3155d3e413dc0a5e70743f4e4db74270b40eb4330e993585401e8224450973
0efb4712d2c97a5c8cf1ac055a082318c39f77d8a1e4ae59a33ff59be98890b5
ab2750bca6be18540fa1e2b8f4d32bcd9e45fb451fe4470c2726e3b9bb31dfc2
b6452e42998b1812fa730fbc90e81058c936eb3444d2311017a67270955ac8ee
41282b98b750b71fdf1032ecbbbce6e0f49c9dfd8828a2291be25de045974c0e
6713b31e8477d08c8fc65faded344a9f96cd3d8e7a076035bc87ee0b568661f1
';
